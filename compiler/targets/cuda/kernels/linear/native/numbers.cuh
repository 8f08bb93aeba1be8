// Conversions of numbers, and elements of tensors that a call may not have.
#pragma once
#include "instructions.cuh"

__device__ inline float widen(bf16 one) { return __uint_as_float(static_cast<u32>(one.bits) << 16); }
__device__ inline float widen(float one) { return one; }

// Two 16-bit numbers of a word as f32 bits.
template <class T> __device__ inline void widen_pair(u32 word, u32& low, u32& high) {
    low = __float_as_uint(widen(T{static_cast<u16>(word)}));
    high = __float_as_uint(widen(T{static_cast<u16>(word >> 16)}));
}

__device__ inline void narrow(float wide, float* to) { *to = wide; }

// Element `at` of a tensor, or 0 of one that is absent.
template <class T> __device__ inline float read(const T* tensor, long long at) { return widen(tensor[at]); }
__device__ inline float read(Absent, long long) { return 0.0f; }
template <class T> __device__ inline void write(float number, T* tensor, long long at) { narrow(number, tensor + at); }
__device__ inline void write(float, Absent, long long) {}

// The sum of a warp's numbers, the same in each lane.
__device__ inline float warp_sum(float number) {
    for (int distance = 16; distance > 0; distance /= 2) number += __shfl_xor_sync(0xFFFFFFFF, number, distance);
    return number;
}
