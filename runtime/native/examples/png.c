#include "png.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint32_t crc_of(const uint8_t *data, size_t size) {
  uint32_t crc = 0xFFFFFFFFu;
  for (size_t i = 0; i < size; ++i) {
    crc ^= data[i];
    for (int bit = 0; bit < 8; ++bit) crc = crc & 1 ? crc >> 1 ^ 0xEDB88320u : crc >> 1;
  }
  return ~crc;
}

static uint8_t *put(uint8_t *at, uint32_t value) {
  for (int shift = 24; shift >= 0; shift -= 8) *at++ = (uint8_t)(value >> shift);
  return at;
}

static int write_chunk(FILE *file, const char *kind, const uint8_t *body, size_t size) {
  uint8_t *chunk = malloc(size + 12);
  if (!chunk) return -1;
  memcpy(put(chunk, (uint32_t)size), kind, 4);
  if (size) memcpy(chunk + 8, body, size);
  put(chunk + 8 + size, crc_of(chunk + 4, size + 4));
  size_t written = fwrite(chunk, 1, size + 12, file);
  free(chunk);
  return written == size + 12 ? 0 : -1;
}

int write_png(const char *path, const uint8_t *rgb, uint32_t height, uint32_t width) {
  size_t line = 1 + 3 * (size_t)width, size = height * (line + 5) + 6; /* a stored block for each line */
  uint8_t header[13], *data = malloc(size), *at = data;
  FILE *file = data ? fopen(path, "wb") : NULL;
  if (!file) return free(data), -1;
  put(put(header, width), height);
  memcpy(header + 8, "\x08\x02\0\0", 5); /* 8 bits of red, green and blue */
  uint32_t a = 1, b = 0;
  *at++ = 0x78, *at++ = 0x01;
  for (uint32_t y = 0; y < height; ++y) {
    *at++ = y + 1 == height;
    *at++ = (uint8_t)line, *at++ = (uint8_t)(line >> 8), *at++ = (uint8_t)~line, *at++ = (uint8_t)(~line >> 8);
    *at++ = 0; /* no filter */
    memcpy(at, rgb + y * (line - 1), line - 1);
    b = (b + a) % 65521;
    for (size_t i = 0; i + 1 < line; ++i) a = (a + at[i]) % 65521, b = (b + a) % 65521;
    at += line - 1;
  }
  put(at, b << 16 | a);
  int failed = fwrite("\x89PNG\r\n\x1a\n", 1, 8, file) != 8 || write_chunk(file, "IHDR", header, 13) ||
               write_chunk(file, "IDAT", data, size) || write_chunk(file, "IEND", NULL, 0);
  free(data);
  return fclose(file) || failed ? -1 : 0;
}
