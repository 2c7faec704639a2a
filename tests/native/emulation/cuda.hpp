// What the emulated libraries ask of the emulated GPU (cuda.cpp), beside the driver's API.
#pragma once

#include <cstddef>

extern "C" {
void emulated_open(void);                                   // a kernel begins: the GPU's memory may be touched
void emulated_close(void);                                  // it ends
int emulated_is_device(const void *memory, size_t num_bytes);  // whether all of it lies in one block of the GPU's
void emulated_put(void *stream, void (*work)(void *), void *argument);  // behind what is on the stream
// Copies since the last `emulated_forget` of at least so many bytes: how many, and how many bytes together.
// Kinds: 'u' uploads, 'd' downloads, 'c' copies on the device.
void emulated_count(char kind, size_t at_least, size_t *count, size_t *num_bytes);
void emulated_forget(void);
size_t emulated_live(void);  // bytes that are allocated
}
