/* What the generated part of a module hands to the runtime. */
#ifndef TINSMITH_PLAN_H
#define TINSMITH_PLAN_H

#include "tinsmith.h"

#ifndef DIM_COUNT
#define DIM_COUNT 0 /* the batch is fixed */
#endif

/* Runs iterations [begin, end) of a kernel's stage. */
typedef int32_t (*stage_function)(int32_t begin, int32_t end, char *const *pointers,
                                  char *task_scratch);

/* It and the stages behind it, `span` together, run `rounds` times in turn. */
typedef struct {
  stage_function run;
  int32_t extent;
  int32_t rounds;
  int32_t span;
#if DIM_COUNT
  const int32_t *ends; /* the extent for a batch of 1, 2, ...; NULL: `extent` for each */
  int32_t alone;       /* not shared out */
#endif
} stage;

/* Bases: 0 weights, 1 arena, 2... inputs, then outputs. */
typedef struct {
  uint32_t base;
  uint64_t offset;
} place;

typedef struct {
  const stage *stages;
  const place *places;
  int32_t stage_count;
  int32_t place_count;
} step;

/* Between an output, or before all steps an input, and the memory that kernels use. */
typedef struct {
  int32_t output;
  place source;
  uint64_t nbytes;
#if DIM_COUNT
  uint64_t blocks; /* each with as many images in front as the batch has; 0: no images */
#endif
} output_copy;

#endif
