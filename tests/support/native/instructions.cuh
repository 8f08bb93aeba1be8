// The instructions of the file of the same name beside the kernels, as plain C++ on `machine.h`.
#pragma once
#include <algorithm>
#include <bit>
#include <cmath>

#include "machine.h"

#define __device__
#define __global__
#define __shared__
#define __restrict__
#define __grid_constant__
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __block_size__(...)
#include "values.cuh"

struct Index {
    int x, y, z;
};
struct uint4 {
    u32 x, y, z, w;
};
#define threadIdx (Index{machine::current->thread, 0, 0})
#define blockIdx (Index{machine::block[0], machine::block[1], machine::block[2]})
template <class A, class B> auto min(A a, B b) { return a < b ? a : b; }
inline float __uint_as_float(u32 bits) { return std::bit_cast<float>(bits); }
inline u32 __float_as_uint(float number) { return std::bit_cast<u32>(number); }
inline float __expf(float x) { return std::exp(x); }
inline float erff(float x) { return std::erf(x); }
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }

struct Tensor2d {  // what a Matrix holds here
    const u8* data;
    long long rows, columns;
    int box_rows, box_columns;
};

extern u8 memory[];
inline u8* at(u32 address) { return memory + (address - machine::SHARED_AT); }
inline u32 shared_address(const void* pointer) {
    return static_cast<u32>(static_cast<const u8*>(pointer) - memory) + machine::SHARED_AT;
}

inline void mbarrier_init(u32 address, u32 arrivals) {
    machine::barriers[address] = {static_cast<int>(arrivals), static_cast<int>(arrivals)};
}
inline void fence_barriers() {}
inline void mbarrier_arrive(u32 address) {
    --machine::barrier(address).pending;
    machine::complete(machine::barrier(address));
}
inline void mbarrier_expect(u32 address, u32 bytes) {
    machine::barrier(address).bytes += bytes;
    mbarrier_arrive(address);
}
inline void mbarrier_wait(u32 address, u32 parity) {
    machine::wait_until([=] { return (machine::barrier(address).phase & 1) != static_cast<int>(parity); });
}
inline void later(u32 address, u32 bytes, std::function<void()> copy) {
    machine::pending.push_back({[=] {
                                    copy();
                                    machine::barrier(address).bytes -= bytes;
                                    machine::complete(machine::barrier(address));
                                },
                                -1});
}
inline void bulk_copy(u32 target, const void* source, u32 bytes, u32 barrier) {
    if (target % 16 || bytes % 16 || reinterpret_cast<u64>(source) % 16) machine::fail("a copy that is not aligned");
    later(barrier, bytes, [=] { std::memcpy(at(target), source, bytes); });
}
// Byte `address` of shared memory, swizzled by 128 bytes: bits 7 to 9 are added, without carry, to bits 4 to 6.
inline u32 swizzled(u32 address) { return address ^ (address >> 7 & 7) << 4; }
inline void tile_copy(u32 target, const Matrix* matrix, int column, int row, u32 barrier) {
    Tensor2d one;
    std::memcpy(&one, matrix->opaque, sizeof one);
    if (target % 1024 || one.box_columns != 128 || one.box_rows > 256) machine::fail("a tile that is not aligned");
    later(barrier, one.box_rows * one.box_columns, [=] {
        for (int r = 0; r < one.box_rows; ++r)
            for (int c = 0; c < one.box_columns; ++c) {
                bool inside = row + r < one.rows && column + c < one.columns;
                *at(swizzled(target + r * 128 + c)) = inside ? one.data[(row + r) * one.columns + column + c] : 0;
            }
    });
}
inline void launch_dependents() {}
inline void wait_for_launch() {
    machine::wait_until([] { return machine::released; });
}
inline void __syncthreads() { machine::meet(1000, static_cast<int>(machine::fibers.size())); }
inline void __syncwarp() { machine::meet(machine::current->thread / 32, 32); }
template <int THREADS> void named_barrier(int barrier) { machine::meet(2000 + barrier, THREADS); }
inline uint4 load_shared(u32 address) {
    if (address % 16) machine::fail("a load that is not aligned");
    uint4 found;
    std::memcpy(&found, at(address), 16);
    return found;
}
inline u32 load_shared_word(u32 address) {
    if (address % 4) machine::fail("a load that is not aligned");
    u32 found;
    std::memcpy(&found, at(address), 4);
    return found;
}
inline float e4m3(u8 code) {
    int exponent = code >> 3 & 15, fraction = code & 7;
    if ((code & 127) == 127) return NAN;
    float size = exponent ? std::ldexp(8 + fraction, exponent - 10) : std::ldexp(fraction, -9);
    return code & 128 ? -size : size;
}
inline void widen_e4m3(u16 pair, u32& low, u32& high) {
    low = __float_as_uint(e4m3(pair & 255)), high = __float_as_uint(e4m3(pair >> 8));
}
inline float widen(f16 one) { return static_cast<float>(std::bit_cast<_Float16>(one.bits)); }
inline void narrow(float wide, f16* to) { to->bits = std::bit_cast<u16>(static_cast<_Float16>(wide)); }
inline void narrow(float wide, bf16* to) {
    u32 bits = __float_as_uint(wide);
    to->bits = std::isnan(wide) ? 0x7FFF : (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
}

inline float widen(bf16 one);  // in numbers.cuh

inline float exchanged[64][32];
inline float __shfl_xor_sync(u32, float number, int distance) {
    int warp = machine::current->thread / 32, lane = machine::current->thread % 32;
    exchanged[warp][lane] = number;
    __syncwarp();
    float found = exchanged[warp][lane ^ distance];
    __syncwarp();
    return found;
}

// Registers that the lanes of a warp show each other.
struct Shown {
    u32 a[4], b[2];
};
inline Shown shown[64][32];
template <class Product> void together(float (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1, Product product) {
    int warp = machine::current->thread / 32, lane = machine::current->thread % 32;
    shown[warp][lane] = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
    __syncwarp();
    float more[4];
    for (int c = 0; c < 4; ++c) more[c] = product(shown[warp], lane / 4 + c / 2 * 8, lane % 4 * 2 + c % 2);
    __syncwarp();
    for (int c = 0; c < 4; ++c) sum[c] += more[c];
}
inline float tf32(u32 bits) {
    if (bits & 0x1FFF) machine::fail("a number that TF32 does not hold");
    return __uint_as_float(bits);
}
inline void mma_tf32(float (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    together(sum, a, b0, b1, [](Shown* lanes, int row, int column) {
        float found = 0;
        for (int k = 0; k < 8; ++k)
            found += tf32(lanes[row % 8 * 4 + k % 4].a[k / 4 * 2 + row / 8]) * tf32(lanes[column * 4 + k % 4].b[k / 4]);
        return found;
    });
}
template <class T> void mma_half(float (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    together(sum, a, b0, b1, [](Shown* lanes, int row, int column) {
        float found = 0;
        for (int k = 0; k < 16; ++k) {
            u32 one = lanes[row % 8 * 4 + k % 8 / 2].a[k / 8 * 2 + row / 8], two = lanes[column * 4 + k % 8 / 2].b[k / 8];
            int shift = k % 2 * 16;
            found += widen(T{static_cast<u16>(one >> shift)}) * widen(T{static_cast<u16>(two >> shift)});
        }
        return found;
    });
}
template <u32> void give_registers() {}
template <u32> void take_registers() {}
