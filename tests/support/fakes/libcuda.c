/* libcuda.so.1 for tests of the real Python bindings where there is no GPU: memory is the host's, work is done at once.
   Its one kernel takes (int *out, int value, two scratch pointers) and stores the launch's facts from out on. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct { unsigned gx, gy, gz, bx, by, bz, shared; void *stream; void *attrs; unsigned count; } Config;

static int allowed = 0;
static int graphs = 0;
static const Config *captured_config = 0;
static int captured_value = 0;
static int *captured_out = 0;
static int capturing = 0;

int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return ordinal ? 101 : 0; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, "Fake GPU", size); return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = 1 << 30; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  *value = attribute == 75 ? 9 : attribute == 76 ? 0 : attribute == 97 ? 232448 : attribute == 16 ? 132 : -1;
  return 0;
}
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)0x10; return 0; }
int cuDevicePrimaryCtxRelease_v2(int device) { return 0; }
int cuCtxSetCurrent(void *context) { return context == (void *)0x10 ? 0 : 201; }
int cuMemGetInfo_v2(size_t *free, size_t *total) { *free = 1 << 29; *total = 1 << 30; return 0; }
int cuMemAlloc_v2(uint64_t *address, size_t bytes) {
  if (bytes > 1 << 29) return 2;
  *address = (uint64_t)aligned_alloc(512, (bytes + 511) / 512 * 512);
  return 0;
}
int cuMemFree_v2(uint64_t address) { free((void *)address); return 0; }
int cuMemHostAlloc(void **address, size_t bytes, unsigned flags) { *address = malloc(bytes); return 0; }
int cuMemFreeHost(void *address) { free(address); return 0; }
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t n, void *stream) { memcpy((void *)to, from, n); return 0; }
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t n, void *stream) { memcpy(to, (void *)from, n); return 0; }
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t n, void *stream) {
  memcpy((void *)to, (void *)from, n);
  return 0;
}
int cuMemsetD8Async(uint64_t to, unsigned char byte, size_t n, void *stream) { memset((void *)to, byte, n); return 0; }
int cuStreamCreate(void **stream, unsigned flags) { *stream = (void *)0x20; return flags == 1 ? 0 : 1; }
int cuStreamSynchronize(void *stream) { return 0; }
int cuStreamDestroy_v2(void *stream) { return 0; }
int cuEventCreate(void **event, unsigned flags) { *event = (void *)(uintptr_t)(0x30 + flags); return 0; }
int cuEventRecord(void *event, void *stream) { return 0; }
int cuEventSynchronize(void *event) { return 0; }
int cuEventElapsedTime_v2(float *ms, void *start, void *stop) { *ms = 2.5f; return 0; }
int cuEventElapsedTime(float *ms, void *start, void *stop) { *ms = 2.5f; return 0; }
int cuEventDestroy_v2(void *event) { return 0; }
int cuModuleLoadData(void **module, const void *image) {
  if (strcmp(image, "a cubin")) return 200;
  *module = (void *)0x40;
  return 0;
}
int cuModuleUnload(void *module) { return 0; }
int cuModuleGetFunction(void **function, void *module, const char *name) {
  *function = (void *)0x50;
  return strcmp(name, "kernel") ? 500 : 0;
}
int cuFuncSetAttribute(void *function, int attribute, int value) { allowed = value; return attribute == 8 ? 0 : 1; }

static void run(const Config *config, int value, int *out) {
  int facts[10] = {value, config->gx, config->gy, config->gz, config->bx, config->shared, allowed, config->count, 0, 0};
  if (config->count) {
    facts[8] = *(int *)config->attrs;              /* the attribute's id */
    facts[9] = *(int *)((char *)config->attrs + 8); /* and value, behind 4 bytes of padding */
  }
  memcpy(out, facts, sizeof facts);
}
int cuLaunchKernelEx(const Config *config, void *function, void **parameters, void **extra) {
  if (config->stream != (void *)0x20 || extra) return 1;
  int *out = *(int **)parameters[0];
  int value = *(int *)parameters[1];
  if (*(void **)parameters[2] || *(void **)parameters[3]) return 1;
  if (capturing) {
    captured_config = config;
    captured_value = value;
    captured_out = out;
  } else {
    run(config, value, out);
  }
  return 0;
}
int cuStreamBeginCapture_v2(void *stream, int mode) { capturing = 1; return mode == 1 ? 0 : 1; }
int cuStreamEndCapture(void *stream, void **graph) { capturing = 0; graphs++; *graph = (void *)0x60; return 0; }
int cuGraphInstantiateWithFlags(void **exec, void *graph, unsigned long long flags) {
  graphs++;
  *exec = (void *)0x70;
  return 0;
}
int cuGraphDestroy(void *graph) { graphs--; return graph == (void *)0x60 ? 0 : 1; }
int cuGraphExecDestroy(void *exec) { graphs--; return graphs == 0 && exec == (void *)0x70 ? 0 : 1; }
int cuGraphUpload(void *exec, void *stream) { return exec == (void *)0x70 ? 0 : 1; }
int cuGraphLaunch(void *exec, void *stream) { run(captured_config, captured_value, captured_out); return 0; }

static void *versioned(const char *symbol) {
  static const char *suffixes[] = {"_v2", "", "WithFlags"};
  char name[128];
  for (int i = 0; i < 3; i++) {
    strcpy(name, symbol);
    strcat(name, suffixes[i]);
    void *found = dlsym(RTLD_DEFAULT, name);
    Dl_info where, own;
    if (!found) {
      void *self = dladdr((void *)cuInit, &own) ? dlopen(own.dli_fname, RTLD_LAZY | RTLD_NOLOAD) : 0;
      found = self ? dlsym(self, name) : 0;
    }
    if (found && dladdr(found, &where)) return found;
  }
  return 0;
}
int cuGetProcAddress_v2(const char *symbol, void **function, int version, uint64_t flags, int *status) {
  *function = versioned(symbol);
  if (status) *status = *function ? 0 : 1;
  return *function ? 0 : 500;
}
