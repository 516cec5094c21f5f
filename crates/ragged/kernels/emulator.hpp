// Runs the kernels of this directory on the CPU, from the same source, to test their index arithmetic, barriers and use of memory
// on machines without a GPU. It says nothing about speed.
//
// Each thread of a block is a fiber, which runs until it waits at a barrier of its block or warp; then the next fiber continues.
// The caller chooses the order: a result that depends on it reveals a race. Warp shuffles and matrix products are exchanges at
// the warp's barrier; matrix products use the layout of fragments that PTX documents for `mma.sync`.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <utility>
#include <vector>

#include <ucontext.h>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

// CUDA's vector types.
struct float4 {
    float x, y, z, w;
};
struct uint2 {
    unsigned x, y;
};
struct uint4 {
    unsigned x, y, z, w;
};

namespace emulator {

constexpr int WARP = 32;
constexpr size_t STACK = 64 << 10;

// Barrier of the fibers of one block or warp.
struct Barrier {
    unsigned expected = 0, arrived = 0;
    uint64_t round = 0;
};

struct Warp {
    Barrier barrier;
    // Values that lanes exchange; twice, because a lane may write the next value before another has read the last.
    alignas(16) unsigned char slots[2][WARP][64];
};

struct Fiber {
    ucontext_t context;
    std::vector<unsigned char> stack;
    dim3 thread;
    unsigned number = 0;
    // Exchanges of this lane so far.
    uint64_t exchanges = 0;
    bool done = false;
};

struct Machine {
    dim3 grid, block, at;
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    Barrier barrier;
    std::vector<unsigned char> shared;
    ucontext_t scheduler;
    Fiber* running = nullptr;
    // Whether any fiber advanced in this round of the scheduler.
    bool progress = false;
    void (*body)(void**) = nullptr;
    void** arguments = nullptr;
    const char* problem = nullptr;
};

inline Machine machine;

inline void yield() {
    swapcontext(&machine.running->context, &machine.scheduler);
}

inline void arrive(Barrier& barrier) {
    machine.progress = true;
    if (++barrier.arrived >= barrier.expected) {
        barrier.arrived = 0;
        ++barrier.round;
        return;
    }
    for (uint64_t round = barrier.round; barrier.round == round;) yield();
}

// Removes a finished fiber from the barrier.
inline void leave(Barrier& barrier) {
    if (--barrier.expected > 0 && barrier.arrived >= barrier.expected) {
        barrier.arrived = 0;
        ++barrier.round;
    }
}

inline Warp& warp() {
    return machine.warps[machine.running->number / WARP];
}

// Gives `value` to every lane of the warp; returns the values of all lanes.
template <class T>
const unsigned char (*exchange(const T& value))[64] {
    static_assert(sizeof(T) <= 64, "too much for one exchange");
    Warp& warp = emulator::warp();
    auto& slots = warp.slots[machine.running->exchanges++ % 2];
    std::memcpy(slots[machine.running->number % WARP], &value, sizeof(T));
    arrive(warp.barrier);
    return slots;
}

template <class T>
T of_lane(const unsigned char (*slots)[64], unsigned lane) {
    T value;
    std::memcpy(&value, slots[lane % WARP], sizeof(T));
    return value;
}

inline void entry() {
    Fiber& fiber = *machine.running;
    machine.body(machine.arguments);
    fiber.done = true;
    machine.progress = true;
    leave(machine.barrier);
    leave(warp().barrier);
    swapcontext(&fiber.context, &machine.scheduler);
}

// Returns the `i`-th of `n` fibers to continue: from the first one, from the last one, or in an order drawn from `order`.
inline unsigned place(unsigned i, unsigned n, uint32_t order) {
    if (order == 0) return i;
    if (order == 1) return n - 1 - i;
    // An odd step visits every place of the power of two above.
    unsigned size = 1;
    while (size < n) size *= 2;
    return (i * (order | 1) + order / 2) % size;
}

inline void run_block(uint32_t order, size_t shared_bytes) {
    Machine& m = machine;
    const unsigned threads = m.block.x * m.block.y * m.block.z;
    // NaN, in floats and in halves: reveals reads before the first write.
    m.shared.assign(shared_bytes + 64, 0xff);
    m.fibers.resize(threads);
    m.warps.assign((threads + WARP - 1) / WARP, Warp{});
    m.barrier = Barrier{threads, 0, 0};
    for (unsigned t = 0; t < threads; ++t) {
        Fiber& fiber = m.fibers[t];
        ++m.warps[t / WARP].barrier.expected;
        fiber.number = t;
        fiber.thread = {t % m.block.x, t / m.block.x % m.block.y, t / m.block.x / m.block.y};
        fiber.exchanges = 0;
        fiber.done = false;
        fiber.stack.resize(STACK);
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.data();
        fiber.context.uc_stack.ss_size = STACK;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, entry, 0);
    }
    unsigned size = 1;
    while (size < threads) size *= 2;
    for (unsigned left = threads; left > 0;) {
        m.progress = false;
        left = 0;
        for (unsigned i = 0; i < (order > 1 ? size : threads); ++i) {
            const unsigned t = place(i, threads, order);
            if (t >= threads || m.fibers[t].done) continue;
            m.running = &m.fibers[t];
            swapcontext(&m.scheduler, &m.running->context);
            left += !m.running->done;
        }
        if (left > 0 && !m.progress) {
            m.problem = "threads wait at different barriers";
            return;
        }
    }
    for (size_t i = shared_bytes; i < m.shared.size(); ++i) {
        if (m.shared[i] != 0xff) m.problem = "a block writes behind its shared memory";
    }
}

// The device rejects unaligned vector loads.
inline void must_be_aligned(const void* at, size_t bytes) {
    if (reinterpret_cast<uintptr_t>(at) % bytes) machine.problem = "memory is not aligned for a vector load";
}

template <class... A, size_t... I>
void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_const_t<A>*>(arguments[I])...);
}

struct Kernel {
    const char* name;
    void (*body)(void**);
    // Bytes of each parameter.
    std::vector<size_t> parameters;
    const Kernel* next;
};

inline const Kernel* kernels = nullptr;

struct Registration {
    Kernel kernel;
    Registration(const char* name, void (*body)(void**), std::vector<size_t> parameters)
        : kernel{name, body, std::move(parameters), kernels} {
        kernels = &kernel;
    }
};

template <auto KERNEL>
struct Body;

template <class... A, void (*KERNEL)(A...)>
struct Body<KERNEL> {
    static void run(void** arguments) {
        call(KERNEL, arguments, std::index_sequence_for<A...>{});
    }
    static std::vector<size_t> parameters() {
        return {sizeof(A)...};
    }
};

}  // namespace emulator

#define threadIdx (emulator::machine.running->thread)
#define blockIdx (emulator::machine.at)
#define blockDim (emulator::machine.block)
#define gridDim (emulator::machine.grid)

inline void __syncthreads() {
    emulator::arrive(emulator::machine.barrier);
}

inline void __syncwarp() {
    emulator::arrive(emulator::warp().barrier);
}

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
    return emulator::of_lane<T>(emulator::exchange(value), (emulator::machine.running->number % 32) ^ mask);
}

template <class T>
T __shfl_sync(unsigned, T value, int lane) {
    return emulator::of_lane<T>(emulator::exchange(value), lane);
}

inline float __expf(float x) {
    return std::exp(x);
}

inline float rsqrtf(float x) {
    return 1.0f / std::sqrt(x);
}

inline unsigned __float_as_uint(float x) {
    unsigned bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}

inline float __uint_as_float(unsigned bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

// Conversions round to nearest, ties to even, as on the device.
struct __nv_bfloat16 {
    uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 x) {
    return __uint_as_float(static_cast<unsigned>(x.bits) << 16);
}

inline __nv_bfloat16 __float2bfloat16(float x) {
    const unsigned bits = __float_as_uint(x);
    if ((bits & 0x7fffffff) > 0x7f800000) return {static_cast<uint16_t>(bits >> 16 | 0x40)};
    return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

using std::fmaxf;
using std::fminf;
using std::max;
using std::min;

// Registers a kernel for launches by name.
#define KERNEL(name)                                                            \
    static emulator::Registration registration_of_##name(#name, emulator::Body<&name>::run, \
                                                         emulator::Body<&name>::parameters())

// Shared memory of the block.
#define SHARED(type, name) type* name = reinterpret_cast<type*>(emulator::machine.shared.data())

// Launches `name` with `count` arguments of these sizes. Returns null or an error message.
extern "C" __attribute__((used)) inline const char* emulate(const char* name, const unsigned* grid, const unsigned* block, size_t shared,
                                      void** arguments, const size_t* sizes, size_t count, uint32_t order) {
    for (const emulator::Kernel* kernel = emulator::kernels; kernel; kernel = kernel->next) {
        if (std::strcmp(kernel->name, name)) continue;
        if (kernel->parameters != std::vector<size_t>(sizes, sizes + count)) return "its parameters are others";
        // Maximum of the largest GPUs.
        if (shared > 227 << 10) return "no GPU has that much shared memory";
        emulator::Machine& m = emulator::machine;
        m.grid = {grid[0], grid[1], grid[2]};
        m.block = {block[0], block[1], block[2]};
        m.body = kernel->body;
        m.arguments = arguments;
        m.problem = nullptr;
        const unsigned blocks = grid[0] * grid[1] * grid[2];
        for (unsigned i = 0; i < blocks && !m.problem; ++i) {
            const unsigned b = order == 1 ? blocks - 1 - i : i;
            m.at = {b % grid[0], b / grid[0] % grid[1], b / grid[0] / grid[1]};
            emulator::run_block(order, shared);
        }
        return m.problem;
    }
    return "there is no such kernel";
}
