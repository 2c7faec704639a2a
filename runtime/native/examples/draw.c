/* Draws a picture, with a bar of its progress; Ctrl-C gives it up.
 *
 *   rf_draw BUNDLE "a red car" picture.png [SEED [BACKEND]]
 *
 * BACKEND is ort, tensorrt or tensorrt-rtx.
 */
#include <rf.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

#include "png.h"

static volatile sig_atomic_t interrupted;
static void on_interrupt(int number) { (void)number, interrupted = 1; }

static int on_event(const rf_event *event, void *user) {
  (void)user;
  int done = 40 * (event->step + 1) / event->num_steps;
  fprintf(stderr, "\r%-8s [%.*s%*s] %d of %d ", event->kind == RF_TOKEN ? "planning" : "drawing", done,
          "########################################", 40 - done, "", event->step + 1, event->num_steps);
  return interrupted;
}

int main(int argc, char **argv) {
  if (argc < 4) return fprintf(stderr, "usage: rf_draw BUNDLE PROMPT PICTURE.png [SEED [BACKEND]]\n"), 2;
  if (rf_api_version() < RF_API_VERSION) return fprintf(stderr, "librf_runtime is older than this program.\n"), 1;
  signal(SIGINT, on_interrupt);
  rf_pipeline *pipeline = NULL;
  uint8_t *rgb = NULL;
  rf_size size;
  rf_open_options open;
  rf_open_options_init(&open);
  open.backend = argc > 5 ? argv[5] : NULL;
  rf_status status = rf_open(argv[1], &open, &pipeline);
  if (!status) status = rf_measure(pipeline, NULL, &size);
  if (!status) {
    rf_prompt prompt = {argv[2], NULL, 0};
    rf_draw_options options;
    rf_pictures pictures;
    rf_draw_options_init(&options);
    rf_pictures_init(&pictures);
    options.seed = argc > 4 ? strtoull(argv[4], NULL, 10) : 0;
    pictures.rgb_room = 3 * (size_t)size.height * (size_t)size.width;
    pictures.rgb = rgb = malloc(pictures.rgb_room);
    if (!rgb) return fprintf(stderr, "There is no memory for the picture.\n"), 1;
    status = rf_draw(pipeline, &prompt, 1, &options, on_event, NULL, &pictures);
    fputc('\n', stderr);
  }
  if (status) fprintf(stderr, "%s\n", rf_last_error());
  else if (write_png(argv[3], rgb, (uint32_t)size.height, (uint32_t)size.width)) {
    fprintf(stderr, "%s cannot be written.\n", argv[3]);
    status = RF_FAULT;
  }
  free(rgb);
  rf_close(pipeline);
  return status == RF_CANCELLED ? 130 : status != RF_OK;
}
