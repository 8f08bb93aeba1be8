// The instructions of the file of the same name beside the kernels, as plain C++: a product reads shared memory when it
// is run, at some time between its group's commit and the wait.
#pragma once
#include "instructions.cuh"

inline std::map<int, std::vector<machine::Later>> begun;  // of a warpgroup, before the commit
inline std::map<int, std::map<int, float*>> registers;     // of a warpgroup's threads
inline int warpgroup() { return machine::current->thread / 128; }
inline bool leads() { return machine::current->thread % 128 == 0; }

inline void wgmma_fence() { machine::meet(3000 + warpgroup(), 128); }
inline void wgmma_commit() {
    machine::meet(3000 + warpgroup(), 128);
    if (leads()) machine::committed[warpgroup()].push_back(std::move(begun[warpgroup()])), begun[warpgroup()].clear();
    machine::meet(3000 + warpgroup(), 128);
}
template <int LEFT> void wgmma_wait() {
    // A warp waits for its own part only: the others may be behind.
    machine::act_all(warpgroup(), LEFT);
}
template <int COUNT> void settle(float (&)[COUNT]) {}

struct Rows {  // a matrix descriptor (PTX ISA)
    u32 start, stride;
    explicit Rows(u64 bits) : start((bits & 0x3FFF) << 4), stride((bits >> 32 & 0x3FFF) << 4) {
        if (bits >> 62 != 1 || bits >> 49 & 7) machine::fail("a descriptor of another kind");
    }
    float operator()(int row, int k) const { return e4m3(*at(swizzled(start + row / 8 * stride + row % 8 * 128 + k))); }
};
template <int COUNT> void wgmma(float (&d)[COUNT], u64 a, u64 b) {
    int group = warpgroup();
    registers[group][machine::current->thread % 128] = d;
    machine::meet(3000 + group, 128);
    if (leads()) begun[group].push_back({[=, own = registers[group]] {
        Rows left(a), right(b);
        std::vector<float> of_a(64 * 32), of_b(COUNT * 2 * 32);
        for (int k = 0; k < 32; ++k) {
            for (int row = 0; row < 64; ++row) of_a[row * 32 + k] = left(row, k);
            for (int row = 0; row < COUNT * 2; ++row) of_b[row * 32 + k] = right(row, k);
        }
        for (int thread = 0; thread < 128; ++thread)
            for (int i = 0; i < COUNT; ++i) {
                int lane = thread % 32, row = thread / 32 * 16 + lane / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
                float sum = 0;
                for (int k = 0; k < 32; ++k) sum += of_a[row * 32 + k] * of_b[column * 32 + k];
                own.at(thread)[i] += sum;
            }
    }, group});
    machine::meet(3000 + group, 128);
}
