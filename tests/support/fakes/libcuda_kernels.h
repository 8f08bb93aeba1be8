/* The part of libcuda.c that loads machine code, launches it and captures graphs; included by it, once. */

static const Elf64_Shdr *section(const char *image, const char *name) {
  const Elf64_Ehdr *head = (const Elf64_Ehdr *)image;
  const Elf64_Shdr *all = (const Elf64_Shdr *)(image + head->e_shoff);
  for (int i = 1; i < head->e_shnum; i++)
    if (!strcmp(image + all[head->e_shstrndx].sh_offset + all[i].sh_name, name)) return all + i;
  return 0;
}
static size_t elf_bytes(const char *image) {
  const Elf64_Ehdr *head = (const Elf64_Ehdr *)image;
  const Elf64_Shdr *all = (const Elf64_Shdr *)(image + head->e_shoff);
  size_t end = head->e_shoff + head->e_shnum * sizeof *all;
  for (const Elf64_Shdr *one = all; one < all + head->e_shnum; one++)
    if (one->sh_type != SHT_NOBITS && one->sh_offset + one->sh_size > end) end = one->sh_offset + one->sh_size;
  size_t programs = head->e_phoff + head->e_phnum * sizeof(Elf64_Phdr);
  return end > programs ? end : programs;
}
/* The compute capability is in the flags: their second byte since version 8 of the ABI, the lowest one before. */
static int runs_here(const char *image) {
  unsigned flags = ((const Elf64_Ehdr *)image)->e_flags, here = setting("LLMC_FAKE_SM", 90);
  unsigned sm = image[EI_ABIVERSION] >= 8 ? flags >> 8 & 255 : flags & 255;
  return sm / 10 == here / 10 && sm % 10 <= here % 10;
}
static int newer_ptx(const char *text) {
  const char *line = strstr(text, ".version");
  unsigned major = 0, minor = 0, driver = setting("LLMC_FAKE_VERSION", 13000);
  if (!line || sscanf(line, ".version %u.%u", &major, &minor) != 2) return INVALID_PTX;
  unsigned most = 10 * (driver / 1000 - 4) + driver % 1000 / 10; /* CUDA 13.x takes PTX 9.x */
  return 10 * major + minor > most ? UNSUPPORTED_PTX : OK;
}
static int loaded(Module **module, const char *image, unsigned count, const int *options, void **values) {
  const char *text = image + strspn(image, " \t\r\n");
  int elf = !memcmp(image, ELFMAG, SELFMAG), ptx = !elf && (!strncmp(text, ".version", 8) || !strncmp(text, "//", 2));
  int code = elf ? setting("LLMC_FAKE_REFUSE_CUBINS", OK) : ptx ? setting("LLMC_FAKE_REFUSE_PTX", OK) : INVALID_IMAGE;
  if (!code) code = ptx ? newer_ptx(text) : runs_here(image) ? OK : NO_BINARY;
  size_t bytes = ptx ? strlen(image) + 1 : elf ? elf_bytes(image) : 0;
  trace("loading ptx=%d bytes=%zu code=%d\n", ptx, bytes, code);
  for (unsigned i = 0; i + 1 < count; i++) { /* a log (3, or 5 for errors), whose size (4, 6) follows it */
    if ((options[i] != 3 && options[i] != 5) || options[i + 1] != options[i] + 1) continue;
    const char *errors = code ? "ptxas fatal   : refused by the fake driver" : "";
    const char *log = options[i] == 3 ? "ptxas info    : fake" : errors;
    size_t room = (unsigned)(uintptr_t)values[i + 1];
    if (room) snprintf(values[i], room, "%s", log);
    values[i + 1] = (void *)strlen(log);
  }
  if (code) return code;
  *module = made(MODULE, sizeof(Module));
  (*module)->image = malloc(bytes);
  memcpy((*module)->image, image, bytes);
  (*module)->bytes = bytes;
  (*module)->ptx = ptx;
  return OK;
}
API cuModuleLoadData(Module **module, const void *image) {
  OUTSIDE("cuModuleLoadData");
  return loaded(module, image, 0, 0, 0);
}
API cuModuleLoadDataEx(Module **module, const void *image, unsigned count, int *options, void **values) {
  OUTSIDE("cuModuleLoadDataEx");
  return loaded(module, image, count, options, values);
}
API cuModuleUnload(Module *module) { ENTER("cuModuleUnload"); return dropped(module, MODULE); }
API cuModuleGetLoadingMode(int *mode) {
  QUERY("cuModuleGetLoadingMode");
  *mode = getenv("CUDA_MODULE_LOADING") && !strcmp(getenv("CUDA_MODULE_LOADING"), "EAGER") ? 1 : 2;
  return OK;
}

static int declares(const char *ptx, const char *name) {
  size_t length = strlen(name);
  for (const char *at = strstr(ptx, ".entry"); at; at = strstr(at, ".entry")) {
    at += 6;
    at += strspn(at, " \t\n");
    if (!strncmp(at, name, length) && strchr("( \t\n", at[length])) return 1;
  }
  return 0;
}
/* The records of a section .nv.info*: a form, an attribute, and two bytes, which are the size of more for form 4.
   Gives what follows the head of the next record of form 4 and that attribute, or 0; *at moves on. */
static const char *record(const Elf64_Shdr *info, const char *image, int attribute, size_t *at) {
  while (info && *at + 4 <= info->sh_size) {
    const unsigned char *head = (const unsigned char *)image + info->sh_offset + *at;
    *at += 4 + (head[0] == 4 ? head[2] | head[3] << 8 : 0);
    if (head[0] == 4 && head[1] == attribute) return (const char *)head + 4;
  }
  return 0;
}
/* What the records of all kernels say of one, which they name by its number among the symbols; 0 if nothing. */
static unsigned said_of(const Function *function, int attribute) {
  const char *image = function->module->image, *found;
  const Elf64_Shdr *info = section(image, ".nv.info"), *symbols = section(image, ".symtab");
  const Elf64_Shdr *names = section(image, ".strtab");
  unsigned words[2];
  for (size_t at = 0; symbols && names && (found = record(info, image, attribute, &at));) {
    memcpy(words, found, sizeof words);
    const Elf64_Sym *symbol = (const Elf64_Sym *)(image + symbols->sh_offset) + words[0];
    if (!strcmp(image + names->sh_offset + symbol->st_name, function->name)) return words[1];
  }
  return 0;
}
/* Registers, bytes of the frame, threads (.reqntid), and the size of each parameter: the record of one holds its index
   (4 bytes), ordinal (2), offset (2), and flags, whose upper 14 bits are the size. */
static void described(Function *function) {
  const char *image = function->module->image, *found;
  char name[300];
  snprintf(name, sizeof name, ".nv.info.%s", function->name);
  const Elf64_Shdr *info = section(image, name);
  unsigned registers = said_of(function, 0x2f), word;
  unsigned short ordinal;
  if (registers) function->registers = registers;
  function->local = said_of(function, 0x11);
  size_t at = 0;
  if ((found = record(info, image, 0x10, &at))) memcpy(&function->threads, found, 4);
  for (at = 0; (found = record(info, image, 0x17, &at));) {
    memcpy(&ordinal, found + 4, 2);
    memcpy(&word, found + 8, 4);
    if (ordinal >= MOST_PARAMETERS) continue;
    function->sizes[ordinal] = word >> 18;
    if (ordinal >= function->count) function->count = ordinal + 1;
  }
}
API cuModuleGetFunction(Function **function, Module *module, const char *name) {
  ENTER("cuModuleGetFunction", "entry=%s", name);
  char text[300];
  if (!is(module, MODULE)) return INVALID_HANDLE;
  snprintf(text, sizeof text, ".text.%s", name);
  if (module->ptx ? !declares(module->image, name) : !section(module->image, text)) return NOT_FOUND;
  Function *one = *function = made(FUNCTION, sizeof(Function));
  one->module = module;
  one->allowed = DEFAULT_SHARED;
  one->carveout = -1;
  one->registers = 64;
  snprintf(one->name, sizeof one->name, "%s", name);
  if (!module->ptx) described(one);
  return OK;
}
API cuFuncLoad(Function *function) { ENTER("cuFuncLoad"); return is(function, FUNCTION) ? OK : INVALID_HANDLE; }
API cuFuncIsLoaded(int *state, Function *function) { ENTER("cuFuncIsLoaded"); *state = 1; return OK; }
API cuFuncGetName(const char **name, Function *function) { ENTER("cuFuncGetName"); *name = function->name; return OK; }
API cuFuncGetModule(Module **module, Function *function) {
  ENTER("cuFuncGetModule");
  *module = function->module;
  return OK;
}
API cuFuncSetCacheConfig(Function *function, int config) { ENTER("cuFuncSetCacheConfig"); return OK; }
API cuFuncSetAttribute(Function *function, int attribute, int value) {
  ENTER("cuFuncSetAttribute", "attribute=%d value=%d", attribute, value);
  if (!is(function, FUNCTION)) return INVALID_HANDLE;
  if (attribute == 8 && value >= 0 && value <= MOST_SHARED) return function->allowed = value, OK;
  if (attribute == 9 && value >= -1 && value <= 100) return function->carveout = value, OK;
  return INVALID_VALUE;
}
API cuFuncGetAttribute(int *value, int attribute, Function *function) {
  ENTER("cuFuncGetAttribute", "attribute=%d", attribute);
  if (!is(function, FUNCTION)) return INVALID_HANDLE;
  int sm = setting("LLMC_FAKE_SM", 90), threads = function->threads ? function->threads : 1024;
  const int values[] = {threads, 0, 0, function->local, function->registers, sm, sm, 0, function->allowed,
                        function->carveout};
  *value = attribute >= 0 && attribute < 10 ? values[attribute] : 0;
  return OK;
}
API cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, Function *function, int threads, size_t shared) {
  ENTER("cuOccupancyMaxActiveBlocksPerMultiprocessor");
  if (!is(function, FUNCTION) || threads <= 0 || threads > 1024) return INVALID_VALUE;
  int limits[] = {32, 2048 / threads, 65536 / (function->registers * threads), 233472 / (shared + 1024)};
  *blocks = shared > function->allowed ? 0 : 32;
  for (int i = 0; i < 4; i++)
    if (limits[i] < *blocks) *blocks = limits[i];
  return OK;
}

/* What a map says: address, columns, rows, box; it refuses what a driver refuses of maps of bytes, swizzled by 128. */
API cuTensorMapEncodeTiled(uint64_t *map, int dtype, unsigned rank, void *address, const uint64_t *sizes,
                           const uint64_t *strides, const unsigned *box, const unsigned *steps, int interleave,
                           int swizzle, int promotion, int fill) {
  QUERY("cuTensorMapEncodeTiled", "at=%lx columns=%lu rows=%lu box=%u,%u swizzle=%d", (uint64_t)address, sizes[0],
        sizes[1], box[0], box[1], swizzle);
  if (dtype || rank != 2 || (uint64_t)map % 64 || (uint64_t)address % 16 || strides[0] % 16) return INVALID_VALUE;
  if (!sizes[0] || !sizes[1] || box[0] > 128 || !box[1] || box[1] > 256 || swizzle != 3) return INVALID_VALUE;
  memset(map, 0, 128);
  map[0] = (uint64_t)address, map[1] = sizes[0], map[2] = sizes[1], map[3] = box[1];
  return OK;
}

/* The values of the parameters in hexadecimal, if the cubin says their sizes. Reading them finds a bad address. */
static void shown(const Function *function, void **parameters, char *text, size_t room) {
  for (int i = 0; i < function->count && room > 20; i++) {
    uint64_t value = 0;
    memcpy(&value, parameters[i], function->sizes[i] > 8 ? 8 : function->sizes[i]);
    int written = snprintf(text, room, i ? ",%lx" : "%lx", value);
    text += written, room -= written;
  }
}
API cuLaunchKernelEx(const Config *config, Function *function, void **parameters, void **extra) {
  char values[4096] = "";
  int pdl = 0, threads = config->bx * config->by * config->bz;
  if (!is(function, FUNCTION)) return INVALID_HANDLE;
  for (unsigned i = 0; i < config->count; i++)
    if (*(int *)(config->attrs + ATTRIBUTE_BYTES * i) == PDL) pdl = *(int *)(config->attrs + ATTRIBUTE_BYTES * i + 8);
  if (extra || (function->count && !parameters)) return INVALID_VALUE;
  shown(function, parameters, values, sizeof values);
  ENTER("cuLaunchKernelEx", "entry=%s grid=%u,%u,%u threads=%d shared=%u pdl=%d captured=%d values=%s", function->name,
        config->gx, config->gy, config->gz, threads, config->shared, pdl, capturing, values);
  if (!config->gx || !config->gy || !config->gz) return INVALID_VALUE;
  if (config->gx > 2147483647u || config->gy > 65535 || config->gz > 65535) return INVALID_VALUE;
  if (threads <= 0 || threads > 1024 || config->bz > 64) return INVALID_VALUE;
  if (function->threads && threads != function->threads) return INVALID_VALUE;
  if (config->shared > function->allowed) return INVALID_VALUE;
  Node node = {KERNEL, function};
  if (!strcmp(function->name, "facts")) {
    int facts[10] = {*(int *)parameters[1], config->gx, config->gy, config->gz, threads, config->shared,
                     function->allowed, config->count, config->count ? *(int *)config->attrs : 0, pdl};
    if (*(void **)parameters[2] || *(void **)parameters[3]) return INVALID_VALUE;
    node.out = *(int **)parameters[0];
    memcpy(node.facts, facts, sizeof facts);
  }
  return submitted(config->stream, node);
}
API cuLaunchKernel(Function *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void *stream, void **parameters, void **extra) {
  Config config = {gx, gy, gz, bx, by, bz, shared, stream, 0, 0};
  return cuLaunchKernelEx(&config, function, parameters, extra);
}

API cuStreamBeginCapture_v2(Stream *stream, int mode) {
  ENTER("cuStreamBeginCapture");
  if ((uintptr_t)stream <= 2) return CAPTURE_UNSUPPORTED;
  if (!is(stream, STREAM) || stream->capturing) return ILLEGAL_STATE;
  stream->capturing = made(GRAPH, sizeof(Graph));
  capturing++;
  return OK;
}
API cuStreamEndCapture(Stream *stream, Graph **graph) {
  ENTER("cuStreamEndCapture");
  if (!is(stream, STREAM) || !stream->capturing) return ILLEGAL_STATE;
  *graph = stream->capturing;
  stream->capturing = 0;
  capturing--;
  return OK;
}
API cuGraphInstantiateWithFlags(Graph **exec, Graph *graph, unsigned long long flags) {
  ENTER("cuGraphInstantiate", "nodes=%d", is(graph, GRAPH) ? graph->count : -1);
  if (!is(graph, GRAPH)) return INVALID_HANDLE;
  *exec = made(EXEC, sizeof(Graph));
  (*exec)->count = graph->count;
  (*exec)->nodes = malloc(graph->count * sizeof(Node) + 1);
  memcpy((*exec)->nodes, graph->nodes, graph->count * sizeof(Node));
  return OK;
}
API cuGraphGetNodes(Graph *graph, Node **nodes, size_t *count) {
  ENTER("cuGraphGetNodes");
  if (!is(graph, GRAPH)) return INVALID_HANDLE;
  for (size_t i = 0; nodes && i < *count && i < graph->count; i++) nodes[i] = graph->nodes + i;
  if (!nodes || *count > graph->count) *count = graph->count;
  return OK;
}
API cuGraphNodeGetType(Node *node, int *type) { ENTER("cuGraphNodeGetType"); *type = node->type; return OK; }
API cuGraphUpload(Graph *exec, void *stream) { ENTER("cuGraphUpload"); return is(exec, EXEC) ? OK : INVALID_HANDLE; }
API cuGraphLaunch(Graph *exec, Stream *stream) {
  ENTER("cuGraphLaunch", "nodes=%d", is(exec, EXEC) ? exec->count : -1);
  if (!is(exec, EXEC)) return INVALID_HANDLE;
  int code = OK;
  for (int i = 0; i < exec->count && !code; i++) code = submitted(stream, exec->nodes[i]);
  return code;
}
API cuGraphDestroy(void *graph) { ENTER("cuGraphDestroy"); return dropped(graph, GRAPH); }
API cuGraphExecDestroy(void *exec) { ENTER("cuGraphExecDestroy"); return dropped(exec, EXEC); }

/* How the bindings find a function: by its name without a version. */
API cuGetProcAddress_v2(const char *symbol, void **function, int version, uint64_t flags, int *status) {
  static const char *suffixes[] = {"_v4", "_v2", "", "WithFlags"};
  char name[160];
  Dl_info own;
  void *self = dladdr((void *)cuInit, &own) ? dlopen(own.dli_fname, RTLD_LAZY | RTLD_NOLOAD) : 0;
  *function = 0;
  for (int i = 0; i < 4 && self && !*function; i++) {
    snprintf(name, sizeof name, "%s%s", symbol, suffixes[i]);
    *function = dlsym(self, name);
  }
  if (status) *status = *function ? 0 : 1;
  return *function ? OK : NOT_FOUND;
}
