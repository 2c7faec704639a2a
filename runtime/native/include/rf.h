/* rf.h: draws pictures and answers questions from an rf-export bundle, without Python. C99.
 *
 * Every function that can fail returns an rf_status; rf_last_error() then has one sentence: what happened, what was
 * expected, what to do. Where the Python runtime refuses the same thing, the sentence is the same.
 *
 * Structs that go in begin with their size: write it with the rf_*_init function, which also fills in "the bundle's
 * default", and change what you want to be otherwise. A library that is newer than this header takes them as they are.
 *
 * Threads: a pipeline keeps nothing of a drawing, so any number of threads may use one at the same time. A conversation
 * belongs to one thread at a time. Close a pipeline when nothing runs any more, and its conversations before it.
 * A child process that was forked has to open its own pipeline.
 *
 * No exception leaves the library, and none may leave a callback. Texts are UTF-8.
 */
#ifndef RF_H
#define RF_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define RF_PUBLIC __declspec(dllexport)
#else
#define RF_PUBLIC __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define RF_API_VERSION 1

/* What a host may decide by, without reading the message. */
typedef enum rf_status {
  RF_OK = 0,
  RF_INPUT = 1,       /* a wrong prompt, option or argument of the caller's */
  RF_DAMAGED = 2,     /* a file of a bundle or engine is not what it has to be */
  RF_MISMATCH = 3,    /* sound parts that do not belong together, such as an engine of another machine */
  RF_MISSING = 4,     /* a library is not there */
  RF_BUSY = 5,        /* the same call may succeed later */
  RF_CANCELLED = 6,   /* a callback said so */
  RF_OVERFLOW = 7,    /* the numbers left the range of the precision */
  RF_UNSUPPORTED = 8, /* this library does not do it, and the message says what else there is */
  RF_NO_MEMORY = 9,
  RF_FAULT = 10 /* ONNX Runtime failed, or there is a fault in this library */
} rf_status;

typedef struct rf_pipeline rf_pipeline;
typedef struct rf_conversation rf_conversation;

/* The error of the last call of this thread that failed; valid until its next call. Never NULL. */
RF_PUBLIC const char *rf_last_error(void);
/* RF_API_VERSION of the library: at least that of the header, or there is no use in going on. */
RF_PUBLIC uint32_t rf_api_version(void);
/* Version of the library, such as "0.1.0". */
RF_PUBLIC const char *rf_version(void);

/* ---- a bundle, opened ---- */

typedef struct rf_open_options {
  uint32_t size;
  int32_t num_threads;       /* per run; 0: one per core that this process may use */
  const char *precision;     /* "fp32" (NULL), "fp16", "int8", "int8-fp16" */
  const char *dialect;       /* "classic" (NULL), "modern" */
  const char *engine;        /* "auto" (NULL): the bundle's where one fits; "none"; or the folder of one */
  const char *verify;        /* "auto" (NULL): hash what is cheap to hash; "size"; "hash": every byte */
  const char *library;       /* ONNX Runtime's shared library. NULL: the file that RF_ONNXRUNTIME names, or the one that
                                the system finds. The first pipeline of a process decides for all. With another backend:
                                TensorRT's, NULL for the one that the system finds */
  int32_t allow_unverified;  /* also run graphs that failed a verification or that nobody verified */
  void (*warn)(const char *message, void *user); /* NULL: nobody wants to know, such as that an engine did not fit */
  void *user;
  const char *provider;         /* execution provider of ONNX Runtime: NULL or "CPU", "CUDA", "TensorRT", or the name of
                                   another one that the library has. RF_MISSING where it, or its driver, is not there.
                                   With those of NVIDIA's the cache and the pictures stay on the first GPU */
  const char *provider_library; /* of a provider that is a plugin; NULL: none. Needs ONNX Runtime 1.22 */
  int32_t no_spinning;          /* not 0: threads sleep between runs, for cores that others use too */
  const char *backend;          /* "ort" (NULL): ONNX Runtime; "tensorrt", "tensorrt-rtx": engines on a GPU of NVIDIA's */
  const char *backend_library;  /* librf_tensorrt, the module for it. NULL: the file that RF_TENSORRT names, or the one that
                                   is beside this library */
} rf_open_options;

RF_PUBLIC void rf_open_options_init(rf_open_options *options);
/* Opens a bundle: format, sizes, hashes, paths and verdicts are checked, the graphs are loaded. NULL: all defaults. */
RF_PUBLIC rf_status rf_open(const char *bundle, const rf_open_options *options, rf_pipeline **pipeline);
RF_PUBLIC void rf_close(rf_pipeline *pipeline); /* NULL is nothing */

/* What was opened, as a JSON object: model, sampling, precision, dialect, engine, backend, library, provider, tokenizer,
 * bundle_id.
 * In: `room` bytes of `json`, out: bytes that it takes, the zero at the end included. `json` may be NULL to ask. */
RF_PUBLIC rf_status rf_info(const rf_pipeline *pipeline, char *json, size_t *room);

/* Ids of a text. In: `num` ids have room, out: how many there are. `ids` may be NULL to ask. RF_UNSUPPORTED where the
 * bundle's tokenizer is of a kind that this library does not read: give ids then. */
RF_PUBLIC rf_status rf_tokenize(const rf_pipeline *pipeline, const char *text, int64_t *ids, size_t *num);
/* The text of ids, as rf_info. */
RF_PUBLIC rf_status rf_detokenize(const rf_pipeline *pipeline, const int64_t *ids, size_t num, char *text,
                                  size_t *room);

/* ---- drawing ---- */

typedef struct rf_prompt {
  const char *text;   /* NULL or blank: draw without a text */
  const int64_t *ids; /* not NULL: token ids in place of the text */
  size_t num_ids;
} rf_prompt;

typedef struct rf_draw_options { /* 0, NAN and NULL stand for what `plan` says, and then for the bundle's default */
  uint32_t size;
  int32_t height, width; /* in pixels */
  int32_t num_steps;
  int32_t top_k;
  int32_t window; /* representation tokens of a pass; the tokens are the same with any */
  uint64_t seed;  /* prompt i uses seed + i */
  double shift;
  double rep_guidance_scale, pix_guidance_scale; /* 1: a picture costs half */
  double temperature;                            /* 0 takes the most likely token every time */
  const double *times;                           /* of the steps, from 0 to 1, in place of num_steps and shift */
  size_t num_times;
  const double *guided;       /* two times: from which to before which the denoiser is guided */
  const char *plan;           /* "paper": the checkpoint's defaults; "tuned": what `rf-export tune` found */
  const int64_t *forced_rep_ids; /* [prompts, N] tokens to go on with instead of drawing; -1: drawn */
} rf_draw_options;

typedef enum rf_event_kind { RF_TOKEN = 1, RF_STEP = 2 } rf_event_kind;

typedef struct rf_event { /* everything in it is valid in the callback only */
  uint32_t size;
  int32_t kind; /* rf_event_kind */
  int32_t step, num_steps;
  int32_t num_pictures, height, width;
  const int64_t *rep_ids; /* RF_TOKEN: [pictures], as the graph drew them, also where other ones are forced */
  const float *logits;    /* RF_TOKEN: [pictures, num_logits] guided, before temperature */
  size_t num_logits;
  float t, t_next;      /* RF_STEP */
  const float *x_next;  /* RF_STEP: [pictures, 3, height, width] */
  const float *x_pred;  /* RF_STEP: the same, a preview of the finished pictures, -1 to 1 but not clipped */
} rf_event;

/* Returns 0 to go on; anything else cancels the drawing, and rf_draw returns RF_CANCELLED. */
typedef int (*rf_draw_callback)(const rf_event *event, void *user);

typedef struct rf_size {
  int32_t height, width, num_rep_tokens, num_steps, window;
} rf_size;

typedef struct rf_pictures { /* where the pictures go; NULL: not wanted. Room in elements, for all of them together */
  uint32_t size;
  uint8_t *rgb; /* [prompts, height, width, 3] */
  size_t rgb_room;
  float *pixels; /* [prompts, 3, height, width], -1 to 1 but not clipped */
  size_t pixels_room;
  int64_t *rep_ids; /* [prompts, N] */
  size_t rep_ids_room;
} rf_pictures;

RF_PUBLIC void rf_draw_options_init(rf_draw_options *options);
RF_PUBLIC void rf_pictures_init(rf_pictures *pictures);
/* What a drawing with these options takes; NULL: all defaults. */
RF_PUBLIC rf_status rf_measure(const rf_pipeline *pipeline, const rf_draw_options *options, rf_size *size);
/* Draws a picture for every prompt, all of them together, and reports each step. `callback` may be NULL. */
RF_PUBLIC rf_status rf_draw(rf_pipeline *pipeline, const rf_prompt *prompts, size_t num_prompts,
                            const rf_draw_options *options, rf_draw_callback callback, void *user,
                            const rf_pictures *pictures);
/* [3, height, width] from -1 to 1 as [height, width, 3] from 0 to 255: for previews. */
RF_PUBLIC void rf_to_rgb(const float *pixels, int32_t height, int32_t width, uint8_t *rgb);

/* ---- questions about pictures ---- */

typedef struct rf_ask_options { /* 0 and NAN stand for the default */
  uint32_t size;
  int32_t max_tokens;
  int32_t top_k;
  int32_t forget; /* not 0: the conversation is afterwards as it was before the question, its images read */
  uint64_t seed;
  double temperature; /* default 0: the most likely token every time */
  double top_p;       /* default 1 */
  double repetition_penalty; /* default 1 */
  const int64_t *ids; /* token ids of the question in place of its text */
  size_t num_ids;
  const int64_t *forced_ids; /* an answer to go on with instead of the tokens that are drawn */
  size_t num_forced_ids;
} rf_ask_options;

typedef struct rf_word { /* valid in the callback only */
  uint32_t size;
  int32_t step, max_tokens;
  int64_t token_id;
  const char *text; /* what it adds to the answer; empty for the end, for a part of a character, and without a
                       tokenizer that this library reads */
  const float *logits; /* [num_logits] before penalty and temperature */
  size_t num_logits;
} rf_word;

/* Returns 0 to go on; anything else gives the answer up, and the conversation is as it was before the question. */
typedef int (*rf_ask_callback)(const rf_word *word, void *user);

typedef struct rf_answer { /* NULL: not wanted */
  uint32_t size;
  char *text;
  size_t text_room; /* in: bytes; out: bytes that the text takes, with its zero. Longer texts are cut off. */
  int64_t *ids;
  size_t ids_room;  /* in: ids; out: how many there are, the one that ends the answer too */
  int32_t is_cut_off; /* out: ended by max_tokens and not by the model */
} rf_answer;

RF_PUBLIC void rf_ask_options_init(rf_ask_options *options);
RF_PUBLIC void rf_answer_init(rf_answer *answer);
RF_PUBLIC rf_status rf_converse(rf_pipeline *pipeline, rf_conversation **conversation);
RF_PUBLIC void rf_conversation_close(rf_conversation *conversation); /* NULL is nothing */
/* Adds a picture [height, width, 3], of a size that the model reads: it is not resized here. */
RF_PUBLIC rf_status rf_show(rf_conversation *conversation, const uint8_t *rgb, int32_t height, int32_t width);
/* Adds a text that is no question; `ids` in place of it where it is not NULL. */
RF_PUBLIC rf_status rf_say(rf_conversation *conversation, const char *text, const int64_t *ids, size_t num_ids);
/* Asks; NULL or an empty question asks for a caption. */
RF_PUBLIC rf_status rf_ask(rf_conversation *conversation, const char *question, const rf_ask_options *options,
                           rf_ask_callback callback, void *user, rf_answer *answer);
/* Tokens so far, images included: a place to rewind to. */
RF_PUBLIC size_t rf_conversation_length(const rf_conversation *conversation);
/* Tokens whose keys and values are kept; the others are read with the next question. */
RF_PUBLIC size_t rf_conversation_read(const rf_conversation *conversation);
RF_PUBLIC rf_status rf_rewind(rf_conversation *conversation, size_t length);

#ifdef __cplusplus
}
#endif
#endif
