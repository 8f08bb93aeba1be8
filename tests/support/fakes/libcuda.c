/* libcuda.so.1 where there is no GPU: the real Python bindings and the whole runtime run over it. Memory is the host's,
   work is done at once, kernels compute nothing; it refuses what a driver refuses. One thread calls it at a time.

   One kernel computes: "facts" takes (int *out, int value, two scratch pointers) and stores its launch's facts from
   out on: value, grid, threads, shared memory, what is allowed of it, count of attributes, and PDL's id and value.
   Copies and fills on the GPU stop after 64 MiB (MOST_MOVED), and memory costs nothing until it is touched.
   The clock is made up: each event, launch, copy and fill adds a fixed time, or one by its bytes.

   Environment (entry: a part of a kernel's name; code: a number of CUresult):
   LLMC_FAKE_TRACE=path                  append a line for every call: its name without a version, then key=value
   LLMC_FAKE_SM=90, LLMC_FAKE_VERSION=13000, LLMC_FAKE_MEMORY=bytes (80 GiB; 512 MiB of it are the context's)
   LLMC_FAKE_REFUSE_CUBINS=code          loading a cubin gives it; PTX still loads
   LLMC_FAKE_REFUSE_PTX=code             loading PTX gives it. PTX newer than the driver (9.0 for 13.0) gives 222 anyway
   LLMC_FAKE_FAIL=function:n:code,...    the nth call (0: every call) of a function gives it, for example cuMemAlloc:2:2
   LLMC_FAKE_STICKY=entry:code           a launch of it succeeds; what waits next and all after it give the code
   LLMC_FAKE_HANG=entry                  what waits after a launch of it waits forever
   LLMC_FAKE_EXIT=entry                  a launch of it aborts the process */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
  OK, INVALID_VALUE, OUT_OF_MEMORY, NOT_INITIALIZED, INVALID_DEVICE = 101, INVALID_IMAGE = 200, INVALID_CONTEXT,
  NO_BINARY = 209, INVALID_PTX = 218, UNSUPPORTED_PTX = 222, INVALID_HANDLE = 400, ILLEGAL_STATE, NOT_FOUND = 500,
  CAPTURE_UNSUPPORTED = 900
};
enum { STREAM = 0x5eed0001, EVENT, MODULE, FUNCTION, GRAPH, EXEC, KINDS };
enum { KERNEL, COPY, FILL }; /* the first numbers of CUgraphNodeType */
enum { PDL = 6, ATTRIBUTE_BYTES = 72, MOST_PARAMETERS = 512 };
enum { DEFAULT_SHARED = 48 << 10, MOST_SHARED = 232448, LAUNCH_NS = 2000, EVENT_NS = 500 };
#ifndef MOST_MOVED /* -DMOST_MOVED=65536: a rehearsal with weights of 8 GB takes seconds */
#define MOST_MOVED ((size_t)64 << 20)
#endif
#define RESERVED ((size_t)512 << 20)
#define CONTEXT ((void *)0x10)

typedef struct { int kind; char *image; size_t bytes; int ptx; } Module;
typedef struct {
  int kind;
  Module *module;
  char name[256];
  int allowed, carveout, registers, local, threads, count, sizes[MOST_PARAMETERS]; /* count, sizes: of parameters */
} Function;
typedef struct {
  int type;
  Function *function;
  uint64_t to, from;
  size_t bytes;
  unsigned value, width;
  int *out, facts[10];
} Node;
typedef struct { int kind, count; Node *nodes; } Graph;
typedef struct { int kind; Graph *capturing; } Stream;
typedef struct { int kind; unsigned flags; uint64_t at; } Event;
typedef struct { unsigned gx, gy, gz, bx, by, bz, shared; void *stream; char *attrs; unsigned count; } Config;
typedef struct Block { struct Block *next; uint64_t at; size_t bytes; } Block;

static Block *blocks;
static Stream none = {STREAM, 0};
static size_t used;
static uint64_t now_ns = 1000000;
static int started, retained, capturing, pending, dead, hangs, live[KINDS - STREAM];
static __thread void *current;

static long setting(const char *name, long otherwise) {
  const char *text = getenv(name);
  return text ? atol(text) : otherwise;
}
static size_t total(void) { return setting("LLMC_FAKE_MEMORY", 80L << 30); }
static void trace(const char *form, ...) {
  const char *path = getenv("LLMC_FAKE_TRACE");
  FILE *file = path ? fopen(path, "a") : 0;
  va_list given;
  if (!file) return;
  va_start(given, form);
  vfprintf(file, form, given);
  va_end(given);
  fclose(file);
}
/* The code that LLMC_FAKE_FAIL has for this call of a function. */
static int failure(const char *name) {
  static struct { char name[64]; long count; } calls[128];
  const char *rule = getenv("LLMC_FAKE_FAIL");
  size_t length = strlen(name);
  int i = 0;
  if (!rule) return OK;
  while (calls[i].name[0] && strcmp(calls[i].name, name)) i++;
  strcpy(calls[i].name, name);
  calls[i].count++;
  for (; rule; rule = strchr(rule, ',') ? strchr(rule, ',') + 1 : 0) {
    long nth, code;
    if (strncmp(rule, name, length) || sscanf(rule + length, ":%ld:%ld", &nth, &code) != 2) continue;
    if (!nth || nth == calls[i].count) return code;
  }
  return OK;
}
static int is(const void *handle, int kind) { return handle && *(const int *)handle == kind; }
static void *made(int kind, size_t bytes) {
  int *one = calloc(1, bytes);
  *one = kind;
  live[kind - STREAM]++;
  return one;
}
static int dropped(void *handle, int kind) {
  if (!is(handle, kind)) return INVALID_HANDLE;
  live[kind - STREAM]--;
  *(int *)handle = 0; /* never freed: so a second use is found out */
  return OK;
}
/* How functions begin: QUERY for those without a context, ENTER, OUTSIDE for those that no capture takes, and WAIT for
   those that wait for the GPU's work. */
#define SAY(name, ...) \
  do { \
    int code_ = failure(name); \
    trace(name " " __VA_ARGS__); \
    trace(code_ ? " code=%d\n" : "\n", code_); \
    if (code_) return code_; \
  } while (0)
#define QUERY(name, ...) \
  do { \
    SAY(name, __VA_ARGS__); \
    if (!started) return NOT_INITIALIZED; \
  } while (0)
#define ENTER(name, ...) \
  do { \
    QUERY(name, __VA_ARGS__); \
    if (dead) return dead; \
    if (!retained || !current) return INVALID_CONTEXT; \
  } while (0)
#define OUTSIDE(name, ...) \
  do { \
    ENTER(name, __VA_ARGS__); \
    if (capturing) return CAPTURE_UNSUPPORTED; \
  } while (0)
#define WAIT(name, ...) \
  do { \
    OUTSIDE(name, __VA_ARGS__); \
    while (hangs) pause(); \
    if ((dead = pending)) return dead; \
  } while (0)
#define API __attribute__((visibility("default"))) int

API cuInit(unsigned flags) { SAY("cuInit"); started = 1; return flags ? INVALID_VALUE : OK; }
API cuDriverGetVersion(int *version) {
  SAY("cuDriverGetVersion");
  *version = setting("LLMC_FAKE_VERSION", 13000);
  return OK;
}
API cuDeviceGetCount(int *count) { QUERY("cuDeviceGetCount"); *count = 1; return OK; }
API cuDeviceGet(int *device, int ordinal) {
  QUERY("cuDeviceGet");
  *device = ordinal;
  return ordinal ? INVALID_DEVICE : OK;
}
API cuDeviceGetName(char *name, int size, int device) {
  QUERY("cuDeviceGetName");
  snprintf(name, size, "Fake H100");
  return OK;
}
API cuDeviceTotalMem_v2(size_t *bytes, int device) { QUERY("cuDeviceTotalMem"); *bytes = total(); return OK; }
API cuDeviceGetUuid_v2(char *uuid, int device) { QUERY("cuDeviceGetUuid"); memset(uuid, 7, 16); return OK; }
API cuDeviceGetPCIBusId(char *id, int size, int device) {
  QUERY("cuDeviceGetPCIBusId");
  snprintf(id, size, "0000:01:00.0");
  return OK;
}
API cuDeviceGetAttribute(int *value, int attribute, int device) {
  /* of an H100: CUdevice_attribute, value; what is not here is 0 */
  static const int known[][2] = {
    {1, 1024}, {2, 1024}, {3, 1024}, {4, 64}, {5, 2147483647}, {6, 65535}, {7, 65535}, {8, DEFAULT_SHARED}, {9, 65536},
    {10, 32}, {12, 65536}, {13, 1980000}, {16, 132}, {31, 1}, {33, 1}, {36, 2619000}, {37, 5120}, {38, 52428800},
    {39, 2048}, {40, 3}, {41, 1}, {78, 1}, {81, 233472}, {82, 65536}, {83, 1}, {95, 1}, {97, MOST_SHARED}, {106, 32},
    {108, 32768000}, {111, 1024}, {115, 1}};
  QUERY("cuDeviceGetAttribute", "attribute=%d", attribute);
  long sm = setting("LLMC_FAKE_SM", 90);
  *value = attribute == 75 ? sm / 10 : attribute == 76 ? sm % 10 : 0;
  for (size_t i = 0; i < sizeof known / sizeof *known; i++)
    if (known[i][0] == attribute) *value = known[i][1];
  return OK;
}
API cuGetErrorName(int code, const char **text) {
  static char name[32];
  snprintf(name, 32, "FAKE_ERROR_%d", code);
  *text = name;
  return OK;
}
API cuGetErrorString(int code, const char **text) { return cuGetErrorName(code, text); }

API cuDevicePrimaryCtxRetain(void **context, int device) {
  QUERY("cuDevicePrimaryCtxRetain");
  *context = CONTEXT;
  retained += !dead;
  return dead;
}
API cuDevicePrimaryCtxRelease_v2(int device) {
  SAY("cuDevicePrimaryCtxRelease", "bytes=%zu streams=%d events=%d modules=%d graphs=%d", used, live[0], live[1],
      live[2], live[4] + live[5]);
  return dead ? dead : retained-- > 0 ? OK : (retained = 0, INVALID_CONTEXT);
}
API cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) {
  QUERY("cuDevicePrimaryCtxGetState");
  *flags = 0;
  *active = retained > 0;
  return OK;
}
API cuCtxSetCurrent(void *context) {
  QUERY("cuCtxSetCurrent");
  if (dead || (context && (context != CONTEXT || !retained))) return dead ? dead : INVALID_CONTEXT;
  current = context;
  return OK;
}
API cuCtxGetCurrent(void **context) { QUERY("cuCtxGetCurrent"); *context = current; return OK; }
API cuCtxGetDevice(int *device) { ENTER("cuCtxGetDevice"); *device = 0; return OK; }
API cuCtxSynchronize(void) { WAIT("cuCtxSynchronize"); return OK; }
API cuCtxCreate_v4(void **context, void *parameters, unsigned flags, int device) {
  int code = cuDevicePrimaryCtxRetain(context, device);
  return code ? code : cuCtxSetCurrent(*context);
}
API cuCtxDestroy_v2(void *context) { return context == CONTEXT ? cuDevicePrimaryCtxRelease_v2(0) : INVALID_CONTEXT; }

#include "libcuda_memory.h"
#include "libcuda_kernels.h"
