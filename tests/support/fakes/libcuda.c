/* libcuda.so.1 where there is no GPU: the real Python bindings and the whole runtime run over it. Memory is the host's,
   work is done at once, kernels compute nothing; it refuses what a driver refuses. One thread calls it at a time.

   One kernel computes: "facts" takes (int *out, int value, two scratch pointers) and stores its launch's facts from out on.
   Copies and fills on the GPU stop after 64 MiB, and memory costs nothing until it is touched.
   The clock is made up: each event, launch, copy and fill adds a fixed time, or one by its bytes.

   Environment (entry: a part of a kernel's name; code: a number of CUresult):
   LLMC_FAKE_TRACE=path                  append a line for every call: its name without a version, then key=value
   LLMC_FAKE_SM=90, LLMC_FAKE_VERSION=13000, LLMC_FAKE_MEMORY=bytes (80 GiB; 512 MiB of it are the context's)
   LLMC_FAKE_REFUSE_CUBINS=code          loading a cubin gives it; PTX still loads
   LLMC_FAKE_REFUSE_PTX=code             loading PTX gives it. PTX newer than the driver (9.0 for 13.0) gives 222 anyway
   LLMC_FAKE_FAIL=function:n:code,...    the nth call (0: every call) of a function gives it, for example cuMemAlloc:2:2
   LLMC_FAKE_STICKY=entry:code           a launch of it succeeds; the next call that waits, and all after it, give the code
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

enum { OK, INVALID_VALUE, OUT_OF_MEMORY, NOT_INITIALIZED, INVALID_DEVICE = 101, INVALID_IMAGE = 200, INVALID_CONTEXT, NO_BINARY = 209,
       INVALID_PTX = 218, UNSUPPORTED_PTX = 222, INVALID_HANDLE = 400, NOT_FOUND = 500, CAPTURE_UNSUPPORTED = 900, ILLEGAL_STATE = 401 };
enum { STREAM = 0x5eed0001, EVENT, MODULE, FUNCTION, GRAPH, EXEC, KINDS };
enum { KERNEL, COPY, FILL }; /* the first numbers of CUgraphNodeType */
enum { PDL = 6, ATTRIBUTE_BYTES = 72, DEFAULT_SHARED = 48 << 10, MOST_SHARED = 232448, LAUNCH_NS = 2000, EVENT_NS = 500 };
#define MOST_MOVED ((size_t)64 << 20)
#define RESERVED ((size_t)512 << 20)
#define CONTEXT ((void *)0x10)

typedef struct { int kind; char *image; size_t bytes; int ptx; } Module;
typedef struct { int kind; Module *module; char name[256]; int allowed, carveout, threads, count, sizes[512]; } Function;
typedef struct { int type; Function *function; uint64_t to, from; size_t bytes; unsigned value, width; int *out, facts[10]; } Node;
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

static long setting(const char *name, long otherwise) { const char *text = getenv(name); return text ? atol(text) : otherwise; }
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
    if (!strncmp(rule, name, length) && sscanf(rule + length, ":%ld:%ld", &nth, &code) == 2 && (!nth || nth == calls[i].count))
      return code;
  }
  return OK;
}
static int is(const void *handle, int kind) { return handle && *(const int *)handle == kind; }
static void *made(int kind, size_t bytes) { int *one = calloc(1, bytes); *one = kind; live[kind - STREAM]++; return one; }
static int dropped(void *handle, int kind) {
  if (!is(handle, kind)) return INVALID_HANDLE;
  live[kind - STREAM]--;
  *(int *)handle = 0; /* never freed: so a second use is found out */
  return OK;
}
/* How functions begin: QUERY for those without a context, ENTER, and WAIT for those that wait for the GPU's work. */
#define SAY(name, ...) do { int code_ = failure(name); trace(name " " __VA_ARGS__); trace(code_ ? " code=%d\n" : "\n", code_); if (code_) return code_; } while (0)
#define QUERY(name, ...) do { SAY(name, __VA_ARGS__); if (!started) return NOT_INITIALIZED; } while (0)
#define ENTER(name, ...) do { QUERY(name, __VA_ARGS__); if (dead) return dead; if (!retained || !current) return INVALID_CONTEXT; } while (0)
#define WAIT(name, ...) do { ENTER(name, __VA_ARGS__); if (capturing) return CAPTURE_UNSUPPORTED; while (hangs) pause(); if ((dead = pending)) return dead; } while (0)
#define OUTSIDE(name, ...) do { ENTER(name, __VA_ARGS__); if (capturing) return CAPTURE_UNSUPPORTED; } while (0)
#define API __attribute__((visibility("default"))) int

API cuInit(unsigned flags) { SAY("cuInit"); started = 1; return flags ? INVALID_VALUE : OK; }
API cuDriverGetVersion(int *version) { SAY("cuDriverGetVersion"); *version = setting("LLMC_FAKE_VERSION", 13000); return OK; }
API cuDeviceGetCount(int *count) { QUERY("cuDeviceGetCount"); *count = 1; return OK; }
API cuDeviceGet(int *device, int ordinal) { QUERY("cuDeviceGet"); *device = ordinal; return ordinal ? INVALID_DEVICE : OK; }
API cuDeviceGetName(char *name, int size, int device) { QUERY("cuDeviceGetName"); snprintf(name, size, "Fake H100"); return OK; }
API cuDeviceTotalMem_v2(size_t *bytes, int device) { QUERY("cuDeviceTotalMem"); *bytes = total(); return OK; }
API cuDeviceGetUuid_v2(char *uuid, int device) { QUERY("cuDeviceGetUuid"); memset(uuid, 7, 16); return OK; }
API cuDeviceGetPCIBusId(char *id, int size, int device) { QUERY("cuDeviceGetPCIBusId"); snprintf(id, size, "0000:01:00.0"); return OK; }
API cuDeviceGetAttribute(int *value, int attribute, int device) {
  /* of an H100: CUdevice_attribute, value; what is not here is 0 */
  static const int known[][2] = {{1, 1024}, {2, 1024}, {3, 1024}, {4, 64}, {5, 2147483647}, {6, 65535}, {7, 65535}, {8, DEFAULT_SHARED}, {9, 65536},
    {10, 32}, {12, 65536}, {13, 1980000}, {16, 132}, {31, 1}, {33, 1}, {36, 2619000}, {37, 5120}, {38, 52428800}, {39, 2048}, {40, 3}, {41, 1},
    {78, 1}, {81, 233472}, {82, 65536}, {83, 1}, {95, 1}, {97, MOST_SHARED}, {106, 32}, {108, 32768000}, {111, 1024}, {115, 1}};
  QUERY("cuDeviceGetAttribute", "attribute=%d", attribute);
  long sm = setting("LLMC_FAKE_SM", 90);
  *value = attribute == 75 ? sm / 10 : attribute == 76 ? sm % 10 : 0;
  for (size_t i = 0; i < sizeof known / sizeof *known; i++)
    if (known[i][0] == attribute) *value = known[i][1];
  return OK;
}
API cuGetErrorName(int code, const char **text) { static char name[32]; snprintf(name, 32, "FAKE_ERROR_%d", code); *text = name; return OK; }
API cuGetErrorString(int code, const char **text) { return cuGetErrorName(code, text); }

API cuDevicePrimaryCtxRetain(void **context, int device) { QUERY("cuDevicePrimaryCtxRetain"); *context = CONTEXT; retained += !dead; return dead; }
API cuDevicePrimaryCtxRelease_v2(int device) {
  SAY("cuDevicePrimaryCtxRelease", "bytes=%zu streams=%d events=%d modules=%d graphs=%d", used, live[0], live[1], live[2], live[4] + live[5]);
  return dead ? dead : retained-- > 0 ? OK : (retained = 0, INVALID_CONTEXT);
}
API cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { QUERY("cuDevicePrimaryCtxGetState"); *flags = 0; *active = retained > 0; return OK; }
API cuCtxSetCurrent(void *context) {
  QUERY("cuCtxSetCurrent");
  if (dead || (context && (context != CONTEXT || !retained))) return dead ? dead : INVALID_CONTEXT;
  current = context;
  return OK;
}
API cuCtxGetCurrent(void **context) { QUERY("cuCtxGetCurrent"); *context = current; return OK; }
API cuCtxGetDevice(int *device) { ENTER("cuCtxGetDevice"); *device = 0; return OK; }
API cuCtxSynchronize(void) { WAIT("cuCtxSynchronize"); return OK; }
API cuCtxCreate_v4(void **context, void *parameters, unsigned flags, int device) { int code = cuDevicePrimaryCtxRetain(context, device); return code ? code : cuCtxSetCurrent(*context); }
API cuCtxDestroy_v2(void *context) { return context == CONTEXT ? cuDevicePrimaryCtxRelease_v2(0) : INVALID_CONTEXT; }

static int inside(uint64_t address, size_t bytes) {
  for (const Block *one = blocks; one; one = one->next)
    if (one->at <= address && address - one->at <= one->bytes && bytes <= one->bytes - (address - one->at)) return 1;
  return 0;
}
static int allocated(uint64_t *address, size_t bytes) {
  if (!bytes) return INVALID_VALUE;
  if (total() < RESERVED + used || bytes > total() - RESERVED - used) return OUT_OF_MEMORY;
  void *found = mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (found == MAP_FAILED) return OUT_OF_MEMORY;
  Block *one = malloc(sizeof *one);
  *one = (Block){blocks, (uint64_t)found, bytes};
  blocks = one;
  used += bytes;
  trace("allocated at=%lx bytes=%zu\n", (long)found, bytes);
  *address = one->at;
  return OK;
}
static int freed(uint64_t address) {
  Block **where = &blocks, *one;
  while (*where && (*where)->at != address) where = &(*where)->next;
  if (!(one = *where)) return INVALID_VALUE;
  *where = one->next;
  used -= one->bytes;
  munmap((void *)address, one->bytes);
  free(one);
  return OK;
}
API cuMemGetInfo_v2(size_t *free, size_t *all) { ENTER("cuMemGetInfo"); *all = total(); *free = *all - RESERVED - used; return OK; }
API cuMemAlloc_v2(uint64_t *address, size_t bytes) { OUTSIDE("cuMemAlloc", "bytes=%zu", bytes); return allocated(address, bytes); }
API cuMemFree_v2(uint64_t address) { WAIT("cuMemFree"); return freed(address); }
API cuMemAllocAsync(uint64_t *address, size_t bytes, void *stream) { OUTSIDE("cuMemAllocAsync", "bytes=%zu", bytes); return allocated(address, bytes); }
API cuMemFreeAsync(uint64_t address, void *stream) { OUTSIDE("cuMemFreeAsync"); return freed(address); }
API cuMemHostAlloc(void **address, size_t bytes, unsigned flags) { OUTSIDE("cuMemHostAlloc", "bytes=%zu", bytes); return (*address = malloc(bytes)) ? OK : OUT_OF_MEMORY; }
API cuMemFreeHost(void *address) { WAIT("cuMemFreeHost"); free(address); return OK; }

/* Whether a kernel's name has the part that the variable `what` says; a code behind a colon goes to *code. */
static int named(const char *what, const char *kernel, int *code) {
  const char *text = getenv(what);
  char part[256];
  if (!text) return 0;
  snprintf(part, sizeof part, "%s", text);
  char *colon = strrchr(part, ':');
  if (code && colon) *code = atoi(colon + 1), *colon = 0;
  return strstr(kernel, part) != 0;
}
static void executed(const Node *node) {
  size_t bytes = node->bytes < MOST_MOVED ? node->bytes : MOST_MOVED;
  int code = 700;
  now_ns += node->type == KERNEL ? LAUNCH_NS : 1000 + node->bytes / (node->type == COPY ? 1500 : 3000);
  if (node->type == COPY) memmove((void *)node->to, (void *)node->from, bytes);
  if (node->type == FILL && node->width == 1) memset((void *)node->to, node->value, bytes);
  for (size_t i = 0; node->type == FILL && node->width > 1 && i < bytes; i += node->width) memcpy((char *)node->to + i, &node->value, node->width);
  if (node->type != KERNEL) return;
  if (node->out) memcpy(node->out, node->facts, sizeof node->facts);
  if (named("LLMC_FAKE_EXIT", node->function->name, 0)) abort();
  if (named("LLMC_FAKE_HANG", node->function->name, 0)) hangs = 1;
  if (named("LLMC_FAKE_STICKY", node->function->name, &code) && !pending) pending = code;
}
static int submitted(Stream *stream, Node node) {
  stream = (uintptr_t)stream <= 2 ? &none : stream;
  if (!is(stream, STREAM)) return INVALID_HANDLE;
  if (!stream->capturing) return executed(&node), OK;
  Graph *graph = stream->capturing;
  graph->nodes = realloc(graph->nodes, (graph->count + 1) * sizeof node);
  graph->nodes[graph->count++] = node;
  return OK;
}
static int copied(uint64_t to, uint64_t from, size_t n, void *stream) { return inside(to, n) && inside(from, n) ? submitted(stream, (Node){COPY, 0, to, from, n}) : INVALID_VALUE; }
static int filled(uint64_t to, unsigned value, unsigned width, size_t n, void *stream) { return inside(to, n * width) ? submitted(stream, (Node){FILL, 0, to, 0, n * width, value, width}) : INVALID_VALUE; }
static int moved(void *to, const void *from, uint64_t device, size_t n, void *stream) {
  if (!inside(device, n)) return INVALID_VALUE;
  if (capturing && (uintptr_t)stream > 2) return submitted(stream, (Node){COPY, 0, (uint64_t)to, (uint64_t)from, n});
  now_ns += 1000 + n / 50;
  memcpy(to, from, n); /* all of it */
  return OK;
}
API cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t n, void *stream) { ENTER("cuMemcpyHtoDAsync", "bytes=%zu", n); return moved((void *)to, from, to, n, stream); }
API cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t n, void *stream) { ENTER("cuMemcpyDtoHAsync", "bytes=%zu", n); return moved(to, (void *)from, from, n, stream); }
API cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t n, void *stream) { ENTER("cuMemcpyDtoDAsync", "bytes=%zu", n); return copied(to, from, n, stream); }
API cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t n) { WAIT("cuMemcpyHtoD", "bytes=%zu", n); return moved((void *)to, from, to, n, 0); }
API cuMemcpyDtoH_v2(void *to, uint64_t from, size_t n) { WAIT("cuMemcpyDtoH", "bytes=%zu", n); return moved(to, (void *)from, from, n, 0); }
API cuMemcpyDtoD_v2(uint64_t to, uint64_t from, size_t n) { WAIT("cuMemcpyDtoD", "bytes=%zu", n); return copied(to, from, n, 0); }
API cuMemsetD8Async(uint64_t to, unsigned char v, size_t n, void *stream) { ENTER("cuMemsetD8Async", "bytes=%zu", n); return filled(to, v, 1, n, stream); }
API cuMemsetD16Async(uint64_t to, unsigned short v, size_t n, void *stream) { ENTER("cuMemsetD16Async"); return filled(to, v, 2, n, stream); }
API cuMemsetD32Async(uint64_t to, unsigned v, size_t n, void *stream) { ENTER("cuMemsetD32Async"); return filled(to, v, 4, n, stream); }
API cuMemsetD8_v2(uint64_t to, unsigned char v, size_t n) { WAIT("cuMemsetD8", "bytes=%zu", n); return filled(to, v, 1, n, 0); }
API cuMemsetD32_v2(uint64_t to, unsigned v, size_t n) { WAIT("cuMemsetD32"); return filled(to, v, 4, n, 0); }

API cuStreamCreate(void **stream, unsigned flags) { OUTSIDE("cuStreamCreate"); *stream = made(STREAM, sizeof(Stream)); return flags <= 1 ? OK : INVALID_VALUE; }
API cuStreamCreateWithPriority(void **stream, unsigned flags, int priority) { return cuStreamCreate(stream, flags); }
API cuStreamSynchronize(void *stream) { WAIT("cuStreamSynchronize"); return (uintptr_t)stream <= 2 || is(stream, STREAM) ? OK : INVALID_HANDLE; }
API cuStreamQuery(void *stream) { WAIT("cuStreamQuery"); return OK; }
API cuStreamWaitEvent(void *stream, void *event, unsigned flags) { ENTER("cuStreamWaitEvent"); return is(event, EVENT) ? OK : INVALID_HANDLE; }
API cuStreamDestroy_v2(void *stream) { ENTER("cuStreamDestroy"); return dropped(stream, STREAM); }
API cuStreamIsCapturing(Stream *stream, int *status) { ENTER("cuStreamIsCapturing"); *status = stream && stream->capturing; return OK; }
API cuEventCreate(void **event, unsigned flags) { ENTER("cuEventCreate"); Event *one = *event = made(EVENT, sizeof(Event)); one->flags = flags; return OK; }
API cuEventRecord(Event *event, void *stream) {
  ENTER("cuEventRecord");
  if (!is(event, EVENT)) return INVALID_HANDLE;
  event->at = now_ns += EVENT_NS;
  return OK;
}
API cuEventSynchronize(void *event) { WAIT("cuEventSynchronize"); return is(event, EVENT) ? OK : INVALID_HANDLE; }
API cuEventQuery(void *event) { WAIT("cuEventQuery"); return is(event, EVENT) ? OK : INVALID_HANDLE; }
API cuEventElapsedTime_v2(float *ms, Event *start, Event *stop) {
  ENTER("cuEventElapsedTime");
  if (!is(start, EVENT) || !is(stop, EVENT) || !start->at || !stop->at || (start->flags | stop->flags) & 2) return INVALID_HANDLE;
  *ms = ((int64_t)(stop->at - start->at)) / 1e6f;
  return OK;
}
API cuEventDestroy_v2(void *event) { ENTER("cuEventDestroy"); return dropped(event, EVENT); }
#include "libcuda_kernels.h"
