// Types and functions of the kernels that are plain C++: a test compiles them, with the kernels, for the CPU.
#pragma once

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
struct bf16 { u16 bits; };
struct f16 { u16 bits; };
struct alignas(64) Matrix { u8 opaque[128]; };  // CUtensorMap

// A parameter that a call does not have: null, and 0 where it is read.
struct Absent {};
template <class T> constexpr bool given = true;
template <> constexpr bool given<const Absent> = false;
template <class A, class B> constexpr bool is_type = false;
template <class A> constexpr bool is_type<A, A> = true;
constexpr bool same(const char* a, const char* b) {
    while (*a && *a == *b) { ++a; ++b; }
    return *a == *b;
}
constexpr bool same(Absent, const char*) { return false; }
constexpr bool is_text(const char*) { return true; }
constexpr bool is_text(Absent) { return false; }

// A place in a ring of stages, and the parity of the barriers' phase there.
template <int STAGES> struct Turn {
    int stage = 0;
    u32 parity = 0;

    __device__ void next() {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
};
