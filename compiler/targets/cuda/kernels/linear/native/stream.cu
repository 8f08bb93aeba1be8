// Linears of 1 to 16 tokens that stream their weights, FP8 or 16-bit: the Triton function `linear_small_kernel`
// (../small.py) defines the result. A producer warp fills a ring in shared memory with bulk copies and has asked for
// the first weights before the launch before has ended: weights are constants. WARPS warps multiply; each has its own
// columns of K, and their sums are added in the order of the warps. A norm before the linear divides those sums, and one
// behind it begins in the epilogue (../fused.py).
#include "numbers.cuh"
#include "call.cuh"

using Weight = w_element;
using Act = x_element;
constexpr bool FP8 = same(FORMAT, "fp8");
constexpr bool GATED = is_text(ACTIVATION);
constexpr int WEIGHT_BYTES = FP8 ? 1 : 2;
constexpr int GRANULE = 64 / WEIGHT_BYTES;  // columns of which 4 lanes read 16 bytes each
constexpr int GROUPS = BLOCK_N / 16, TOKEN_TILES = (BLOCK_M + 7) / 8;
constexpr int ITERATIONS = (K + BLOCK_K - 1) / BLOCK_K;
constexpr int TURNS = (BLOCK_K / GRANULE + WARPS - 1) / WARPS;  // granules of a warp in a stage
constexpr bool WHOLE = K % BLOCK_K == 0 && BLOCK_K / GRANULE % WARPS == 0;
// Odd rows lie behind even ones, and tokens apart, so that 8 lanes, which read 16 bytes of 2 rows or 4 tokens each, find
// them in different banks.
constexpr u32 ROW = BLOCK_K * WEIGHT_BYTES, ODD = BLOCK_N / 2 * ROW + 64, X_PITCH = BLOCK_K * 2 + (FP8 ? 16 : 64);
constexpr u32 TOKENS = BLOCK_N * ROW + 64, STAGE = TOKENS + BLOCK_M * X_PITCH;
constexpr u32 SUMS = STAGES * STAGE, BARRIERS = SUMS + WARPS * BLOCK_N * BLOCK_M * 4, NORMS = BARRIERS + STAGES * 16;
extern "C" __device__ const u32 SHARED_BYTES = NORMS + BLOCK_M * 4;
static_assert(K % GRANULE == 0 && BLOCK_K % GRANULE == 0 && BLOCK_N % 16 == 0 && SPLITS == 1 && (FP8 || !ORDERED));

extern __shared__ __align__(128) u8 memory[];

__device__ inline u32 ring(int stage) { return shared_address(memory) + stage * STAGE; }
__device__ inline u32 full(int stage) { return shared_address(memory) + BARRIERS + stage * 16; }
__device__ inline u32 empty(int stage) { return full(stage) + 8; }

// The weight's row behind row `local` of a tile; of a merged gate|up the second half of a tile is up.
__device__ inline int weight_row(int local) {
    if constexpr (!GATED) return blockIdx.x * BLOCK_N + local;
    constexpr int HALF = BLOCK_N / 2;
    int gate = blockIdx.x * HALF + local % HALF;
    return gate < N / 2 ? gate + local / HALF * (N / 2) : N;
}

__device__ inline u32 columns(int iteration) { return min(BLOCK_K, K - iteration * BLOCK_K); }

struct Copies {
    const Weight* weights;
    const Act* activations;
    int real, lane;

    __device__ void expect(int stage, int iteration) const {
        if (lane == 0) mbarrier_expect(full(stage), columns(iteration) * (BLOCK_N * WEIGHT_BYTES + real * 2));
        __syncwarp();
    }
    __device__ void ask_weights(int stage, int iteration) const {
        for (int local = lane; local < BLOCK_N; local += 32) {
            const Weight* row = weights + static_cast<long long>(min(weight_row(local), N - 1)) * K;
            bulk_copy(ring(stage) + local / 2 * ROW + local % 2 * ODD, row + iteration * BLOCK_K, columns(iteration) * WEIGHT_BYTES,
                      full(stage));
        }
    }
    __device__ void ask_activations(int stage, int iteration) const {
        if (lane < real)
            bulk_copy(ring(stage) + TOKENS + lane * X_PITCH,
                      activations + static_cast<long long>(lane) * K + iteration * BLOCK_K, columns(iteration) * 2,
                      full(stage));
    }
};

__device__ inline void produce(const Copies& copies) {
    constexpr int FIRST = STAGES < ITERATIONS ? STAGES : ITERATIONS;
    for (int i = 0; i < FIRST; ++i) {
        copies.expect(i, i);
        copies.ask_weights(i, i);
    }
    wait_for_launch();
    for (int i = 0; i < FIRST; ++i) copies.ask_activations(i, i);
    Turn<STAGES> turn;
    for (int i = FIRST; i < ITERATIONS; ++i, turn.next()) {
        mbarrier_wait(empty(turn.stage), turn.parity);
        copies.expect(turn.stage, i);
        copies.ask_weights(turn.stage, i);
        copies.ask_activations(turn.stage, i);
    }
}

// One granule of columns. Lane 4 g + t reads rows and tokens g at 16 t bytes; the order of K does not matter to a sum,
// so the columns of a product are those that a lane has. ORDERED activations lie in the order of `stored_column`.
__device__ inline void multiply_granule(float (&sums)[GROUPS][TOKEN_TILES][4], u32 stage, int granule) {
    int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    u32 tokens[TOKEN_TILES][FP8 ? 16 : 4];
#pragma unroll
    for (int n = 0; n < TOKEN_TILES; ++n) {
        int token = (8 * n + g) % BLOCK_M;  // columns of no token are not stored
        u32 granules = stage + TOKENS + token * X_PITCH + granule * GRANULE * 2;
        if constexpr (ORDERED) {  // words of columns 4 i and 4 i + 2 of the lane, then of 4 i + 1 and 4 i + 3
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                u32* to = tokens[n] + 4 * i;
                widen_pair<Act>(load_shared_word(granules + 32 * i + 4 * t), to[0], to[2]);
                widen_pair<Act>(load_shared_word(granules + 32 * i + 16 + 4 * t), to[1], to[3]);
            }
            continue;
        }
        u32 at = granules + t * (GRANULE / 2);
        uint4 one = load_shared(at);
        if constexpr (FP8) {
            uint4 two = load_shared(at + 16);
            u32 words[8] = {one.x, one.y, one.z, one.w, two.x, two.y, two.z, two.w};
#pragma unroll
            for (int i = 0; i < 8; ++i) widen_pair<Act>(words[i], tokens[n][2 * i], tokens[n][2 * i + 1]);
        } else {
            tokens[n][0] = one.x, tokens[n][1] = one.y, tokens[n][2] = one.z, tokens[n][3] = one.w;
        }
    }
#pragma unroll
    for (int r = 0; r < GROUPS; ++r) {
        u32 at = stage + (8 * r + g / 2) * ROW + g % 2 * ODD + granule * 64 + t * 16;
        uint4 upper = load_shared(at), lower = load_shared(at + 4 * ROW);
        u32 up[4] = {upper.x, upper.y, upper.z, upper.w}, low[4] = {lower.x, lower.y, lower.z, lower.w};
#pragma unroll
        for (int j = 0; j < (FP8 ? 8 : 2); ++j) {
            u32 a[4];
            if constexpr (FP8) {
                widen_e4m3(static_cast<u16>(up[j / 2] >> (j % 2 * 16)), a[0], a[2]);
                widen_e4m3(static_cast<u16>(low[j / 2] >> (j % 2 * 16)), a[1], a[3]);
            } else {
                a[0] = up[2 * j], a[1] = low[2 * j], a[2] = up[2 * j + 1], a[3] = low[2 * j + 1];
            }
#pragma unroll
            for (int n = 0; n < TOKEN_TILES; ++n)
                if constexpr (FP8) mma_tf32(sums[r][n], a, tokens[n][2 * j], tokens[n][2 * j + 1]);
                else mma_half<Act>(sums[r][n], a, tokens[n][2 * j], tokens[n][2 * j + 1]);
        }
    }
}

// act(x); the activations of ../../gated.py.
__device__ inline float activate(float x) {
    if constexpr (same(ACTIVATION, "silu")) return x / (1.0f + __expf(-x));
    if constexpr (same(ACTIVATION, "gelu")) return 0.5f * x * (1.0f + erff(x * 0.7071067811865476f));
    if constexpr (same(ACTIVATION, "gelu_pytorch_tanh")) {
        float inner = 0.7978845608028654f * (x + 0.044715f * x * x * x);
        return x / (1.0f + __expf(-2.0f * inner));
    }
    return x < 0.0f ? 0.0f : x;  // NaN stays NaN
}

// Where the readers of the result want a column (`stored_column` of ../dequantize.py).
__device__ inline int stored_column(int column) {
    if constexpr (ORDER == 0) return column;
    else {
        constexpr int R = ORDER / 2;
        int inner = column % (16 * ORDER), r = inner % R, i = inner / R % 2, word = inner / ORDER % 4;
        return column - inner + ((word * R + r) * 4 + inner / (4 * ORDER)) * 2 + i;
    }
}

// Of each token one over the root mean square of its x, from sums of 32 columns; a warp adds those of a token.
__device__ inline void find_norms(const float* squares, float* norms, int tokens, int first, int real) {
    for (int token = threadIdx.x / 32; token < real; token += WARPS) {
        float sum = 0.0f;
        for (int part = threadIdx.x % 32; part < (K + 31) / 32; part += 32)
            sum += squares[static_cast<long long>(part) * tokens + first + token];
        sum = warp_sum(sum);
        if (threadIdx.x % 32 == 0) norms[token] = rsqrtf(sum / K + EPSILON);
    }
}
__device__ inline void find_norms(Absent, float*, int, int, int) {}

// The sum of all warps for a row and token of the tile, scaled and over the token's root mean square, with its bias.
__device__ inline float total(const float* sums, int local, int token, float norm, const auto& scale,
                              const auto& bias) {
    float sum = 0.0f;
    for (int warp = 0; warp < WARPS; ++warp) sum += sums[(warp * BLOCK_N + local) * BLOCK_M + token];
    int row = min(weight_row(local), N - 1);
    if constexpr (FP8) sum *= scale[row];
    sum *= norm;
    return sum + read(bias, row);
}

extern "C" __global__ void __block_size__((32 * WARPS + 32, 1, 1)) linear_stream_kernel(PARAMETERS) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int first = blockIdx.y * BLOCK_M, real = min(BLOCK_M, tokens - first);
    launch_dependents();
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; ++stage) {
            mbarrier_init(full(stage), 1);
            mbarrier_init(empty(stage), WARPS);
        }
        fence_barriers();
    }
    __syncthreads();
    if (warp == WARPS) {
        produce({w, x + static_cast<long long>(first) * K, real, lane});
        return;
    }
    wait_for_launch();  // activations come no earlier, and below is read and written what an earlier launch may use
    float *kept = reinterpret_cast<float*>(memory + SUMS), *norms = reinterpret_cast<float*>(memory + NORMS);
    find_norms(x_squares, norms, tokens, first, real);
    float sums[GROUPS][TOKEN_TILES][4] = {};
    Turn<STAGES> turn;
#pragma unroll 1
    for (int i = 0; i < ITERATIONS; ++i, turn.next()) {
        mbarrier_wait(full(turn.stage), turn.parity);
#pragma unroll
        for (int granule = warp, turns = 0; turns < TURNS; ++turns, granule += WARPS)
            if (WHOLE || granule * GRANULE < columns(i)) multiply_granule(sums, ring(turn.stage), granule);
        __syncwarp();
        if (lane == 0) mbarrier_arrive(empty(turn.stage));
    }
    for (int r = 0; r < GROUPS; ++r)
        for (int n = 0; n < TOKEN_TILES; ++n)
            for (int c = 0; c < 4; ++c) {
                int local = 16 * r + lane / 4 + c / 2 * 8, token = 8 * n + lane % 4 * 2 + c % 2;
                if (token < BLOCK_M) kept[(warp * BLOCK_N + local) * BLOCK_M + token] = sums[r][n][c];
            }
    named_barrier<32 * WARPS>(1);
    constexpr int ROWS = GATED ? BLOCK_N / 2 : BLOCK_N, WIDTH = GATED ? N / 2 : N;
    static_assert(!given<decltype(squares)> || (ROWS % 32 == 0 && !GATED));
    for (int at = threadIdx.x; at < ROWS * real; at += 32 * WARPS) {
        int local = at % ROWS, token = at / ROWS, row = blockIdx.x * ROWS + local;
        float value = 0.0f;
        if (row < WIDTH) {
            long long to = static_cast<long long>(first + token) * WIDTH, stored = to + stored_column(row);
            float norm = 1.0f;
            if constexpr (given<decltype(x_squares)>) norm = norms[token];
            value = total(kept, local, token, norm, scale, bias) + read(residual, to + row);
            if constexpr (GATED) value = activate(value) * total(kept, local + ROWS, token, norm, scale, bias);
            narrow(value, y + (GATED ? stored : to + row));
            write(value * read(norm_weight, row), normed, stored);
        }
        if constexpr (given<decltype(squares)>) {  // a warp has rows of one token
            float sum = warp_sum(value * value);
            if (lane == 0 && row < N) write(sum, squares, static_cast<long long>(row / 32) * tokens + first + token);
        }
    }
}
