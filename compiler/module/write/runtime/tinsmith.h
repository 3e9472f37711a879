/* C interface of a module compiled by Tinsmith: no Python, no TVM, libc and threads only.
 *
 * A module is described by one constant structure, returned by `<model>_module()`
 * (in a shared library also by `tinsmith_get_module()`):
 *
 *     const tinsmith_module *m = tinsmith_get_module();
 *     if (m->open("weights.bin")) fail(m->last_error());   // path unused when weights are embedded
 *     tinsmith_context *c = m->create();
 *     if (m->run(c, NULL, inputs, outputs)) fail(m->last_error());
 *
 * A module may leave dimensions open, see `dims`: then `run` takes the size of each, such as
 * `(int64_t[]){3}`, and NULL stands for the largest. `tinsmith_extent` and `tinsmith_nbytes` tell
 * how large tensors are then; the memory of a context is that of the largest size.
 *
 * `run` takes one pointer per input and per output, in the declared order, each to
 * a contiguous row-major tensor; inputs and outputs must not overlap. A context
 * serves one thread at a time; several contexts may run at the same time.
 *
 * After fork() the child may use all of it, whatever the parent's threads were doing:
 * threads of its own are started when it first runs a context.
 */
#ifndef TINSMITH_H
#define TINSMITH_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* 2: sizes that are known when a module runs. */
#define TINSMITH_ABI 2
/* Raised with every addition to the end of tinsmith_module. */
#define TINSMITH_REVISION 0

/* A dimension whose size is told with every run. */
typedef struct tinsmith_dim {
  const char *name;
  int64_t low; /* the sizes are from `low` to `high`, in steps of `multiple` */
  int64_t high;
  int64_t multiple;
} tinsmith_dim;

/* One extent of a tensor: `factor` times the dimension number `dim`, or `factor` if that is -1. */
typedef struct tinsmith_axis {
  int32_t dim;
  int64_t factor;
} tinsmith_axis;

typedef struct tinsmith_tensor {
  const char *name;
  const char *dtype; /* as numpy spells it, and "bfloat16" */
  const int64_t *shape; /* with the largest size of each dimension */
  int32_t ndim;
  int32_t reserved;
  uint64_t nbytes;
  const tinsmith_axis *axes; /* NULL: the shape is fixed */
} tinsmith_tensor;

/* Extent number `axis` of a tensor for the sizes `dims`; NULL stands for the largest. */
static inline int64_t tinsmith_extent(const tinsmith_tensor *t, int32_t axis, const int64_t *dims) {
  if (!dims || !t->axes || t->axes[axis].dim < 0) return t->shape[axis];
  return t->axes[axis].factor * dims[t->axes[axis].dim];
}

/* Bytes of a tensor for the sizes `dims`. */
static inline uint64_t tinsmith_nbytes(const tinsmith_tensor *t, const int64_t *dims) {
  uint64_t bytes = t->nbytes;
  for (int32_t i = 0; t->axes && i < t->ndim; i++)
    if (t->shape[i]) bytes = bytes / (uint64_t)t->shape[i] * (uint64_t)tinsmith_extent(t, i, dims);
  return bytes;
}

typedef struct tinsmith_context tinsmith_context;

typedef struct tinsmith_module {
  uint32_t abi; /* TINSMITH_ABI */
  uint32_t weights_embedded;
  const char *name;
  const char *target;
  const char *version;
  int32_t input_count;
  int32_t output_count;
  const tinsmith_tensor *inputs;
  const tinsmith_tensor *outputs;
  int32_t step_count;
  int32_t revision; /* TINSMITH_REVISION of the module */
  const char *const *step_names;
  uint64_t weights_bytes;
  uint64_t arena_bytes; /* memory of one context */
  /* All functions that return int return 0 on success and -1 on failure. */
  int (*open)(const char *weights_path); /* call once, before the first context */
  void (*close)(void);                   /* stops the threads; no context may be left */
  tinsmith_context *(*create)(void);     /* NULL on failure */
  void (*destroy)(tinsmith_context *);
  int (*run)(tinsmith_context *, const int64_t *dims, const void *const *inputs,
             void *const *outputs);
  /* As `run`, and writes the seconds that each step took. */
  int (*profile)(tinsmith_context *, const int64_t *dims, const void *const *inputs,
                 void *const *outputs, double *seconds);
  /* Threads that share each loop, the caller included; 0: as many as the process may use. */
  int (*set_threads)(int threads);
  int (*threads)(void);
  const char *(*last_error)(void); /* of the calling thread */
  /* As `set_threads`, for one context; it keeps its number whatever the module's is. */
  int (*set_context_threads)(tinsmith_context *, int threads);
  int32_t dim_count;
  int32_t reserved;
  const tinsmith_dim *dims;
} tinsmith_module;

#ifdef __cplusplus
}
#endif
#endif
