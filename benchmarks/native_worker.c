/* One side of benchmarks/native.py: draws a picture at its start, then one for each seed on stdin.
 * native_worker BEGUN BUNDLE PRECISION ENGINE THREADS; seconds on the monotonic clock, bytes of memory, and the hash of
 * each picture as lines of JSON. */
#define _POSIX_C_SOURCE 200809L
#include <inttypes.h>
#include <rf.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static double seconds(clockid_t clock) {
  struct timespec now;
  clock_gettime(clock, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static long kibibytes(const char *key) { /* of /proc/self/status */
  char line[256], format[64];
  long value = 0;
  FILE *file = fopen("/proc/self/status", "r");
  snprintf(format, sizeof format, "%s: %%ld", key);
  while (file && fgets(line, sizeof line, file)) sscanf(line, format, &value);
  if (file) fclose(file);
  return value;
}

static int fail(void) { return fprintf(stderr, "%s\n", rf_last_error()), 1; }

int main(int argc, char **argv) {
  rf_pipeline *pipeline = NULL;
  rf_open_options how;
  rf_draw_options options;
  rf_pictures pictures;
  rf_prompt prompt = {"a red car", NULL, 0};
  rf_size size;
  char line[64] = "0";
  if (argc != 6) return 2;
  rf_open_options_init(&how), rf_draw_options_init(&options), rf_pictures_init(&pictures);
  how.precision = argv[3], how.engine = argv[4], how.num_threads = atoi(argv[5]), how.allow_unverified = 1;
  if (rf_open(argv[2], &how, &pipeline) || rf_measure(pipeline, NULL, &size)) return fail();
  pictures.rgb_room = 3 * (size_t)size.height * (size_t)size.width;
  pictures.rgb = malloc(pictures.rgb_room);
  for (int is_first = 1; is_first || fgets(line, sizeof line, stdin); is_first = 0) {
    uint64_t hash = 14695981039346656037u; /* FNV-1a */
    double wall = seconds(CLOCK_MONOTONIC), cpu = seconds(CLOCK_PROCESS_CPUTIME_ID), begun = atof(argv[1]);
    options.seed = strtoull(line, NULL, 10);
    if (rf_draw(pipeline, &prompt, 1, &options, NULL, NULL, &pictures)) return fail();
    for (size_t i = 0; i < pictures.rgb_room; ++i) hash = (hash ^ pictures.rgb[i]) * 1099511628211u;
    double used = seconds(CLOCK_PROCESS_CPUTIME_ID);
    printf("{\"first\": %.6f, \"first_cpu\": %.6f, \"wall\": %.9f, \"cpu\": %.9f, \"resident\": %ld, \"peak\": %ld, \"hash\": \"%016" PRIx64 "\"}\n",
           seconds(CLOCK_MONOTONIC) - begun, used, seconds(CLOCK_MONOTONIC) - wall, used - cpu,
           1024 * kibibytes("VmRSS"), 1024 * kibibytes("VmHWM"), hash);
    fflush(stdout);
  }
  free(pictures.rgb);
  rf_close(pipeline);
  return 0;
}
