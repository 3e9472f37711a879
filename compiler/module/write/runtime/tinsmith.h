/* C interface of a module compiled by Tinsmith: no Python, no TVM, libc and threads only.
 *
 * A module is described by one constant structure, returned by `<model>_module()`
 * (in a shared library also by `tinsmith_get_module()`):
 *
 *     const tinsmith_module *m = tinsmith_get_module();
 *     if (m->open("weights.bin")) fail(m->last_error());   // path unused when weights are embedded
 *     tinsmith_context *c = m->create();
 *     if (m->run(c, inputs, outputs)) fail(m->last_error());
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

#define TINSMITH_ABI 1
/* Raised with every addition to the end of tinsmith_module; 1 added set_context_threads. */
#define TINSMITH_REVISION 1

typedef struct tinsmith_tensor {
  const char *name;
  const char *dtype; /* as numpy spells it, and "bfloat16" */
  const int64_t *shape;
  int32_t ndim;
  int32_t reserved;
  uint64_t nbytes;
} tinsmith_tensor;

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
  int (*run)(tinsmith_context *, const void *const *inputs, void *const *outputs);
  /* As `run`, and writes the seconds that each step took. */
  int (*profile)(tinsmith_context *, const void *const *inputs, void *const *outputs,
                 double *seconds);
  /* Threads that share each loop, the caller included; 0: as many as the process may use. */
  int (*set_threads)(int threads);
  int (*threads)(void);
  const char *(*last_error)(void); /* of the calling thread */
  /* As `set_threads`, for one context; it keeps its number whatever the module's is. */
  int (*set_context_threads)(tinsmith_context *, int threads);
} tinsmith_module;

#ifdef __cplusplus
}
#endif
#endif
