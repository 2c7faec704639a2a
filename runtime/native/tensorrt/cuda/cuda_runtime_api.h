/* What TensorRT's headers take from CUDA's: names of handles. So the module needs CUDA's headers no more than its library. */
#ifndef RF_CUDA_RUNTIME_API_H
#define RF_CUDA_RUNTIME_API_H

typedef struct CUstream_st *cudaStream_t;
typedef struct CUevent_st *cudaEvent_t;

#endif
