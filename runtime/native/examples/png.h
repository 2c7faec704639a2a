/* Writes a PNG, uncompressed: as little as an example needs. */
#ifndef PNG_H
#define PNG_H
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif
int write_png(const char *path, const uint8_t *rgb, uint32_t height, uint32_t width); /* 0 where it was written */
#ifdef __cplusplus
}
#endif
#endif
