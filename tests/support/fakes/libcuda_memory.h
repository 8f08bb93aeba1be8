/* The part of libcuda.c that is memory, copies, streams and events; included by it, once. */

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
API cuMemGetInfo_v2(size_t *free, size_t *all) {
  ENTER("cuMemGetInfo");
  *all = total();
  *free = *all - RESERVED - used;
  return OK;
}
API cuMemAlloc_v2(uint64_t *address, size_t bytes) {
  OUTSIDE("cuMemAlloc", "bytes=%zu", bytes);
  return allocated(address, bytes);
}
API cuMemFree_v2(uint64_t address) { WAIT("cuMemFree"); return freed(address); }
API cuMemAllocAsync(uint64_t *address, size_t bytes, void *stream) {
  OUTSIDE("cuMemAllocAsync", "bytes=%zu", bytes);
  return allocated(address, bytes);
}
API cuMemFreeAsync(uint64_t address, void *stream) { OUTSIDE("cuMemFreeAsync"); return freed(address); }
API cuMemHostAlloc(void **address, size_t bytes, unsigned flags) {
  OUTSIDE("cuMemHostAlloc", "bytes=%zu", bytes);
  return (*address = malloc(bytes)) ? OK : OUT_OF_MEMORY;
}
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
  for (size_t i = 0; node->type == FILL && node->width > 1 && i < bytes; i += node->width)
    memcpy((char *)node->to + i, &node->value, node->width);
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
static int copied(uint64_t to, uint64_t from, size_t n, void *stream) {
  return inside(to, n) && inside(from, n) ? submitted(stream, (Node){COPY, 0, to, from, n}) : INVALID_VALUE;
}
static int filled(uint64_t to, unsigned value, unsigned width, size_t n, void *stream) {
  return inside(to, n * width) ? submitted(stream, (Node){FILL, 0, to, 0, n * width, value, width}) : INVALID_VALUE;
}
static int moved(void *to, const void *from, uint64_t device, size_t n, void *stream) {
  if (!inside(device, n)) return INVALID_VALUE;
  if (capturing && (uintptr_t)stream > 2) return submitted(stream, (Node){COPY, 0, (uint64_t)to, (uint64_t)from, n});
  now_ns += 1000 + n / 50;
  memcpy(to, from, n); /* all of it */
  return OK;
}
API cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t n, void *stream) {
  ENTER("cuMemcpyHtoDAsync", "bytes=%zu", n);
  return moved((void *)to, from, to, n, stream);
}
API cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t n, void *stream) {
  ENTER("cuMemcpyDtoHAsync", "bytes=%zu", n);
  return moved(to, (void *)from, from, n, stream);
}
API cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t n, void *stream) {
  ENTER("cuMemcpyDtoDAsync", "bytes=%zu", n);
  return copied(to, from, n, stream);
}
API cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t n) {
  WAIT("cuMemcpyHtoD", "bytes=%zu", n);
  return moved((void *)to, from, to, n, 0);
}
API cuMemcpyDtoH_v2(void *to, uint64_t from, size_t n) {
  WAIT("cuMemcpyDtoH", "bytes=%zu", n);
  return moved(to, (void *)from, from, n, 0);
}
API cuMemcpyDtoD_v2(uint64_t to, uint64_t from, size_t n) {
  WAIT("cuMemcpyDtoD", "bytes=%zu", n);
  return copied(to, from, n, 0);
}
API cuMemsetD8Async(uint64_t to, unsigned char v, size_t n, void *stream) {
  ENTER("cuMemsetD8Async", "bytes=%zu", n);
  return filled(to, v, 1, n, stream);
}
API cuMemsetD16Async(uint64_t to, unsigned short v, size_t n, void *stream) {
  ENTER("cuMemsetD16Async");
  return filled(to, v, 2, n, stream);
}
API cuMemsetD32Async(uint64_t to, unsigned v, size_t n, void *stream) {
  ENTER("cuMemsetD32Async");
  return filled(to, v, 4, n, stream);
}
API cuMemsetD8_v2(uint64_t to, unsigned char v, size_t n) {
  WAIT("cuMemsetD8", "bytes=%zu", n);
  return filled(to, v, 1, n, 0);
}
API cuMemsetD32_v2(uint64_t to, unsigned v, size_t n) { WAIT("cuMemsetD32"); return filled(to, v, 4, n, 0); }

API cuStreamCreate(void **stream, unsigned flags) {
  OUTSIDE("cuStreamCreate");
  *stream = made(STREAM, sizeof(Stream));
  return flags <= 1 ? OK : INVALID_VALUE;
}
API cuStreamCreateWithPriority(void **stream, unsigned flags, int priority) { return cuStreamCreate(stream, flags); }
API cuStreamSynchronize(void *stream) {
  WAIT("cuStreamSynchronize");
  return (uintptr_t)stream <= 2 || is(stream, STREAM) ? OK : INVALID_HANDLE;
}
API cuStreamQuery(void *stream) { WAIT("cuStreamQuery"); return OK; }
API cuStreamWaitEvent(void *stream, void *event, unsigned flags) {
  ENTER("cuStreamWaitEvent");
  return is(event, EVENT) ? OK : INVALID_HANDLE;
}
API cuStreamDestroy_v2(void *stream) { ENTER("cuStreamDestroy"); return dropped(stream, STREAM); }
API cuStreamIsCapturing(Stream *stream, int *status) {
  ENTER("cuStreamIsCapturing");
  *status = stream && stream->capturing;
  return OK;
}
API cuEventCreate(void **event, unsigned flags) {
  ENTER("cuEventCreate");
  Event *one = *event = made(EVENT, sizeof(Event));
  one->flags = flags;
  return OK;
}
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
  if (!is(start, EVENT) || !is(stop, EVENT) || !start->at || !stop->at) return INVALID_HANDLE;
  if ((start->flags | stop->flags) & 2) return INVALID_HANDLE; /* CU_EVENT_DISABLE_TIMING */
  *ms = ((int64_t)(stop->at - start->at)) / 1e6f;
  return OK;
}
API cuEventDestroy_v2(void *event) { ENTER("cuEventDestroy"); return dropped(event, EVENT); }
