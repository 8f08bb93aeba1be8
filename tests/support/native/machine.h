// A multiprocessor on the CPU for kernels in CUDA C++: threads are fibers that take turns in a random order, and what is
// asynchronous happens at a random later time. A kernel that reads or overwrites too early, or waits for what never
// comes, does so here.
#pragma once
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <vector>

namespace machine {

constexpr unsigned SHARED_AT = 1024;  // address of the first byte of dynamic shared memory, as on sm_90

struct Fiber {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(1 << 16);
    int thread = 0;
    bool done = false;
};
struct Meeting {  // of the threads of a warp, a warpgroup or a block
    int here = 0, generation = 0;
};
struct Barrier {
    int expected = 0, pending = 0, phase = 0;
    long long bytes = 0;
};
struct Later {  // something asynchronous
    std::function<void()> act;
    int group;  // of wgmma: the warpgroup; -1: a copy
};

inline std::mt19937 source;
inline std::vector<std::unique_ptr<Fiber>> fibers;
inline Fiber* current = nullptr;
inline ucontext_t scheduler;
inline std::map<unsigned, Barrier> barriers;
inline std::map<int, Meeting> meetings;
inline std::vector<Later> pending;
inline std::map<int, std::vector<std::vector<Later>>> committed;  // of a warpgroup: groups, oldest first
inline int block[3];
inline bool released = false;  // the launch before has ended
inline std::function<void()> release;
inline bool moved = false;

[[noreturn]] inline void fail(const char* what) {
    std::fprintf(stderr, "%s (thread %d of block %d)\n", what, current ? current->thread : -1, block[0]);
    std::exit(3);
}
inline bool chance(int of) { return source() % of == 0; }
inline void yield() { swapcontext(&current->context, &scheduler); }
template <class Ready> void wait_until(Ready ready) {
    while (!ready()) yield();
    moved = true;
}
inline void meet(int key, int count) {
    Meeting& at = meetings[key];
    int generation = at.generation;
    moved = true;
    if (++at.here == count) at.here = 0, ++at.generation;
    else while (meetings[key].generation == generation) yield();
}
inline Barrier& barrier(unsigned address) {
    if (!barriers.count(address)) fail("a barrier that was not initialized");
    return barriers[address];
}
inline void complete(Barrier& at) {
    if (at.pending < 0) fail("more arrivals than a barrier expects");
    if (at.pending == 0 && at.bytes == 0) at.pending = at.expected, ++at.phase, moved = true;
}
inline void act_one(std::vector<Later>& queue, size_t index) {
    Later one = queue[index];
    queue.erase(queue.begin() + index);
    one.act();
    moved = true;
}
inline void act_some() {
    while (!pending.empty() && chance(3)) act_one(pending, source() % pending.size());
    for (auto& [group, queue] : committed)
        if (!queue.empty() && chance(4)) {
            if (queue.front().empty()) queue.erase(queue.begin());
            else act_one(queue.front(), 0);
            moved = true;
        }
    if (!released && chance(20)) release(), released = true, moved = true;
}
inline void act_all(int group, size_t left) {  // wgmma.wait_group
    auto& queue = committed[group];
    while (queue.size() > left) {
        for (auto& one : queue.front()) one.act();
        queue.erase(queue.begin());
    }
}
inline std::function<void()> kernel;
inline void enter() {
    kernel();
    current->done = true;
    yield();
}
inline void run_block(int threads, std::function<void()> body) {
    kernel = std::move(body);
    barriers.clear(), meetings.clear(), committed.clear();
    fibers.clear();
    for (int i = 0; i < threads; ++i) {
        auto one = std::make_unique<Fiber>();
        one->thread = i;
        getcontext(&one->context);
        one->context.uc_stack.ss_sp = one->stack.data();
        one->context.uc_stack.ss_size = one->stack.size();
        one->context.uc_link = &scheduler;
        makecontext(&one->context, reinterpret_cast<void (*)()>(enter), 0);
        fibers.push_back(std::move(one));
    }
    int idle = 0;
    for (bool left = true; left;) {
        left = false, moved = false;
        int first = source() % (threads / 32), slow = source() % (threads / 32);
        for (int i = 0; i < threads; ++i) {
            Fiber& one = *fibers[(i + 32 * first) % threads];
            if (one.done) continue;
            left = true;
            if (one.thread / 32 == slow) continue;  // a warp that falls behind
            current = &one;
            swapcontext(&scheduler, &one.context);
            current = nullptr;
        }
        act_some();
        idle = moved ? 0 : idle + 1;
        if (left && idle > 5000) fail("deadlock");
    }
    if (!pending.empty()) fail("a copy that nobody waited for");
}
}  // namespace machine
