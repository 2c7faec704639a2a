/* What librf_runtime asks of librf_tensorrt, which alone is compiled with NVIDIA's headers: a table of C functions, so that
 * one librf_runtime runs with the module for each major version of TensorRT.
 *
 * The caller has made the GPU current. What fails returns NULL or 0, and `error` then has why. */
#ifndef RF_TENSORRT_MODULE_H
#define RF_TENSORRT_MODULE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define RF_TENSORRT_ABI 1
#define RF_TENSORRT_DIMS 8

typedef struct rf_trt_tensor {
  const char *name;
  int32_t is_input, type; /* as ONNX numbers them; 0: another one */
  int32_t num_dims;
  int64_t shape[RF_TENSORRT_DIMS];    /* -1: free */
  const char *written_over;           /* of an output that has to lie where an input lies: that input; else NULL */
} rf_trt_tensor;

typedef struct rf_trt_shape {
  int32_t num_dims;
  int64_t sizes[RF_TENSORRT_DIMS];
} rf_trt_shape;

typedef struct rf_trt_module {
  uint32_t abi;
  const char *backend; /* "tensorrt", "tensorrt-rtx" */
  const char *headers; /* their version, such as "10.13.3" */
  const char *library; /* that is opened where none is named, such as "libnvinfer.so.10" */

  /* Opens the library; NULL where it is not there. `version` is filled in before its other functions are used: the caller
   * compares it with `headers`. */
  void *(*open)(const char *library, char *version, size_t version_room, char *error, size_t room);
  int32_t (*start)(void *library, char *error, size_t room); /* once the version was found to fit */
  void (*close)(void *library);

  void *(*load)(void *library, const void *plan, size_t num_bytes, char *error, size_t room);
  void (*unload)(void *engine);
  int32_t (*num_tensors)(void *engine);
  void (*tensor)(void *engine, int32_t index, rf_trt_tensor *tensor);
  int32_t (*num_profiles)(void *engine);
  void (*range)(void *engine, const char *input, int32_t profile, rf_trt_shape shapes[3]); /* smallest, best, largest */
  int64_t (*activation_bytes)(void *engine);

  void *(*create_context)(void *engine, char *error, size_t room);
  void (*release_context)(void *context);
  int32_t (*use)(void *context, int32_t profile, void *activations, int64_t num_bytes, void *stream);
  int32_t (*set_shape)(void *context, const char *input, const rf_trt_shape *shape);
  int32_t (*set_address)(void *context, const char *tensor, void *address);
  void (*shape)(void *context, const char *tensor, rf_trt_shape *shape);
  int32_t (*enqueue)(void *context, void *stream);
  void (*last_error)(char *error, size_t room); /* what TensorRT complained about last */
} rf_trt_module;

const rf_trt_module *rf_tensorrt_module(void);

#ifdef __cplusplus
}
#endif
#endif
