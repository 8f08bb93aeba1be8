// Linears of many tokens with FP8 weights and activations: the Triton function `linear_fp8_kernel` (../fp8.py) defines
// the result. A producer asks for tiles by tensor maps, into a ring in shared memory, the first weights before the launch
// before has ended; each warpgroup multiplies 64 tokens by BLOCK_N rows. A product begins while the one before is still
// running: only the group before that one is waited for, and sums stay in the tensor cores' accumulators.
#include "numbers.cuh"
#include "wgmma.cuh"
#include "call.cuh"

using Result = y_element;
constexpr int GROUPS = BLOCK_M / 64, WARPS = 4 * GROUPS;  // that multiply
constexpr int ITERATIONS = (K + BLOCK_K - 1) / BLOCK_K, ROW_BLOCKS = (N + BLOCK_N - 1) / BLOCK_N;
constexpr u32 TOKENS = 0, WEIGHTS = BLOCK_M * BLOCK_K, STAGE = WEIGHTS + BLOCK_N * BLOCK_K, BARRIERS = STAGES * STAGE;
extern "C" __device__ const u32 SHARED_BYTES = BARRIERS + STAGES * 16;
static_assert(BLOCK_K == 128 && BLOCK_M % 64 == 0 && SPLITS == 1 && !BLOCKS && !PROMOTE);

extern __shared__ __align__(1024) u8 memory[];

__device__ inline u32 ring(int stage) { return shared_address(memory) + stage * STAGE; }
__device__ inline u32 full(int stage) { return shared_address(memory) + BARRIERS + stage * 16; }
__device__ inline u32 empty(int stage) { return full(stage) + 8; }

struct Tile {
    int token, row;  // the first ones
};

// The tile of a program, in bands of GROUP_ROWS blocks of tokens, so that a band's weights are read while in L2.
__device__ inline Tile tile_of(int program, int token_blocks) {
    int first = program / (GROUP_ROWS * ROW_BLOCKS) * GROUP_ROWS, within = program % (GROUP_ROWS * ROW_BLOCKS);
    int height = min(token_blocks - first, GROUP_ROWS);
    return {(first + within % height) * BLOCK_M, within / height * BLOCK_N};
}

__device__ inline void produce(const Matrix* x, const Matrix* w, Tile tile) {
    constexpr int FIRST = STAGES < ITERATIONS ? STAGES : ITERATIONS;
    for (int i = 0; i < FIRST; ++i) {
        mbarrier_expect(full(i), STAGE);  // what lies outside of a matrix counts too
        tile_copy(ring(i) + WEIGHTS, w, i * BLOCK_K, tile.row, full(i));
    }
    wait_for_launch();
    for (int i = 0; i < FIRST; ++i) tile_copy(ring(i) + TOKENS, x, i * BLOCK_K, tile.token, full(i));
    Turn<STAGES> turn;
    for (int i = FIRST; i < ITERATIONS; ++i, turn.next()) {
        mbarrier_wait(empty(turn.stage), turn.parity);
        mbarrier_expect(full(turn.stage), STAGE);
        tile_copy(ring(turn.stage) + WEIGHTS, w, i * BLOCK_K, tile.row, full(turn.stage));
        tile_copy(ring(turn.stage) + TOKENS, x, i * BLOCK_K, tile.token, full(turn.stage));
    }
}

// A matrix of rows of 128 bytes, swizzled: 8 rows, 1024 bytes, after each other (matrix descriptor: address and stride
// in units of 16 bytes, swizzling mode 1). The first row's address is a multiple of 1024.
__device__ inline u64 swizzled_rows(u32 address) {
    return static_cast<u64>((address & 0x3FFFF) >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62;
}

__device__ inline void multiply(float (&sums)[BLOCK_N / 2], int group, int lane) {
    Turn<STAGES> turn;
    int before = 0;
#pragma unroll 1
    for (int i = 0; i < ITERATIONS; ++i) {
        mbarrier_wait(full(turn.stage), turn.parity);
        u64 a = swizzled_rows(ring(turn.stage) + TOKENS + group * 64 * BLOCK_K);
        u64 b = swizzled_rows(ring(turn.stage) + WEIGHTS);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < BLOCK_K / 32; ++k) wgmma(sums, a + 2 * k, b + 2 * k);  // 32 bytes along a row
        wgmma_commit();
        wgmma_wait<1>();
        if (i > 0 && lane == 0) mbarrier_arrive(empty(before));
        before = turn.stage;
        turn.next();
    }
    wgmma_wait<0>();
    settle(sums);
}

// Stores a row of two neighbouring columns, of which the second may lie outside.
__device__ inline void store(Result* y, long long at, float left, float right, bool both) {
    struct alignas(2 * sizeof(Result)) Pair { Result left, right; } pair;
    narrow(left, &pair.left);
    narrow(right, &pair.right);
    if (N % 2 == 0) *reinterpret_cast<Pair*>(y + at) = pair;
    else {
        y[at] = pair.left;
        if (both) y[at + 1] = pair.right;
    }
}

extern "C" __global__ void __block_size__((32 * WARPS + 128, 1, 1)) linear_gemm_kernel(PARAMETERS) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    launch_dependents();
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; ++stage) {
            mbarrier_init(full(stage), 1);
            mbarrier_init(empty(stage), WARPS);
        }
        fence_barriers();
    }
    __syncthreads();
    Tile tile = tile_of(blockIdx.x, (tokens + BLOCK_M - 1) / BLOCK_M);
    if (warp >= WARPS) {
        if constexpr (GROUPS == 2) give_registers<40>();
        if (threadIdx.x == 32 * WARPS) produce(&x, &w, tile);
        return;
    }
    // What 2 warpgroups take beyond the 168 registers of 384 threads is what the third gives. One has enough, and would
    // wait forever for registers that the block does not have.
    if constexpr (GROUPS == 2) take_registers<232>();
    float sums[BLOCK_N / 2] = {};
    multiply(sums, warp / 4, lane);
    wait_for_launch();  // before anything is written or read that an earlier launch may still use
    int token = tile.token + warp * 16 + lane / 4;
    float scales[2];
    for (int half = 0; half < 2; ++half)
        scales[half] = token + 8 * half < tokens ? x_scale[STATIC ? 0 : token + 8 * half] : 0.0f;
#pragma unroll
    for (int j = 0; j < BLOCK_N / 8; ++j) {
        int row = tile.row + 8 * j + lane % 4 * 2;
        if (row >= N) continue;
        bool both = row + 1 < N;
        float left = w_scale[row], right = both ? w_scale[row + 1] : 0.0f;
        float left_bias = read(bias, row), right_bias = both ? read(bias, row + 1) : 0.0f;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            if (token + 8 * half >= tokens) continue;
            long long at = static_cast<long long>(token + 8 * half) * N + row;
            float one = sums[4 * j + 2 * half] * (left * scales[half]) + left_bias + read(residual, at);
            float two = sums[4 * j + 2 * half + 1] * (right * scales[half]) + right_bias;
            store(y, at, one, both ? two + read(residual, at + 1) : 0.0f, both);
        }
    }
}
