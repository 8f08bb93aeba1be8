// Instructions of sm_90a that CUDA C++ has no names for, each as the PTX ISA describes it; needs no toolkit's header.
// A test has another file of this name, in which they are plain C++ (tests/support/native/instructions.cuh).
#pragma once
#include "values.cuh"


__device__ inline u32 shared_address(const void* pointer) {
    return static_cast<u32>(__cvta_generic_to_shared(pointer));
}

__device__ inline void mbarrier_init(u32 barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes initialized barriers visible to bulk copies; all threads synchronize afterwards.
__device__ inline void fence_barriers() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

__device__ inline void mbarrier_arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

__device__ inline void mbarrier_expect(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// Waits until the phase of this parity is complete: the first wait of a new barrier has parity 0.
__device__ inline void mbarrier_wait(u32 barrier, u32 parity) {
    asm volatile(
        "{\n.reg .pred done;\n"
        "WAIT:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra WAIT;\n}" ::"r"(barrier), "r"(parity) : "memory");
}

// Copies `bytes`, a multiple of 16, from global memory; both addresses are multiples of 16.
__device__ inline void bulk_copy(u32 target, const void* source, u32 bytes, u32 barrier) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(target),
        "l"(__cvta_generic_to_global(source)), "r"(bytes), "r"(barrier) : "memory");
}

// Copies the tile of a matrix that begins at this column and row; what lies outside of the matrix becomes 0.
__device__ inline void tile_copy(u32 target, const Matrix* matrix, int column, int row, u32 barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
        ::"r"(target), "l"(matrix), "r"(column), "r"(row), "r"(barrier) : "memory");
}

__device__ inline void launch_dependents() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// Returns when the launch before has ended and its results are visible; at once if this one was not launched early.
__device__ inline void wait_for_launch() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

template <int THREADS> __device__ inline void named_barrier(int barrier) {
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "n"(THREADS) : "memory");
}

__device__ inline uint4 load_shared(u32 address) {
    uint4 found;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(found.x), "=r"(found.y), "=r"(found.z), "=r"(found.w) : "r"(address) : "memory");
    return found;
}

__device__ inline u32 load_shared_word(u32 address) {
    u32 found;
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(found) : "r"(address) : "memory");
    return found;
}

// Two E4M3 numbers, the low byte first, as two f32.
__device__ inline void widen_e4m3(u16 pair, u32& low, u32& high) {
    asm("{\n.reg .b32 both;\n.reg .b16 one, two;\n"
        "cvt.rn.f16x2.e4m3x2 both, %2;\n"
        "mov.b32 {one, two}, both;\n"
        "cvt.f32.f16 %0, one;\n"
        "cvt.f32.f16 %1, two;\n}"
        : "=r"(low), "=r"(high) : "h"(pair));
}

__device__ inline float widen(f16 one) {
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(one.bits));
    return wide;
}
__device__ inline void narrow(float wide, bf16* to) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to->bits) : "f"(wide)); }
__device__ inline void narrow(float wide, f16* to) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to->bits) : "f"(wide)); }
// sum [16 x 8] += a [16 x 8] b [8 x 8] in TF32, which holds bf16, f16 and E4M3 numbers exactly.
__device__ inline void mma_tf32(float (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
        "%3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// sum [16 x 8] += a [16 x 16] b [16 x 8] of 16-bit numbers.
template <class T> __device__ inline void mma_half(float (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    if constexpr (is_type<T, bf16>)
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3};"
            : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    else
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3};"
            : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <u32 REGISTERS> __device__ inline void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
template <u32 REGISTERS> __device__ inline void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
