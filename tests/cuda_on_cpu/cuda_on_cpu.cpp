// Runs the blocks of a kernel on one CPU core, thread after thread.
//
// Each CUDA thread runs until it ends or waits. One that ends hands its stack to the next; one that
// waits keeps it (a fiber) and the next starts on another. When no thread can run, whoever has met
// goes on: the lanes of a warp operation, else all threads of the block at one __syncthreads. If
// nobody has met, the kernel is wrong and the launch ends with a message. A seed shuffles the order
// of blocks, warps, threads, and of those that go on, so that a race shows in the numbers.
//
// Built with CUDA_ON_CPU_ADDRESS or CUDA_ON_CPU_THREAD it is a program that reads one launch from
// stdin, and tells AddressSanitizer or ThreadSanitizer about the fibers. It is not instrumented.
#ifdef _WIN32
#define NOMINMAX
#include <windows.h>
#define EXPORTED __declspec(dllexport)
#else
#include <sys/mman.h>
#include <unistd.h>
#define EXPORTED __attribute__((visibility("default")))
#endif

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "cuda_on_cpu.h"

#undef __noinline__
#undef __forceinline__

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace cuda_on_cpu {

extern const Kernel kernels[];  // of the file at hand, ended by a null name

// ---- switching stacks ------------------------------------------------------------------------

#if defined(_WIN32)  // the system's own fibers
#elif defined(__x86_64__)
extern "C" void switch_stack(void** save, void* load) __asm__("cuda_on_cpu_switch_stack");
__asm__(
    ".text\n.globl cuda_on_cpu_switch_stack\ncuda_on_cpu_switch_stack:\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
    "movq %rsp, (%rdi)\nmovq %rsi, %rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n");
constexpr int FRAME = 8, RETURN = 6;  // words kept on the stack, and where the address to go to is
#elif defined(__aarch64__)
extern "C" void switch_stack(void** save, void* load) __asm__("cuda_on_cpu_switch_stack");
__asm__(
    ".text\n.globl cuda_on_cpu_switch_stack\n.p2align 2\ncuda_on_cpu_switch_stack:\n"
    "sub sp, sp, #160\nstp x19, x20, [sp]\nstp x21, x22, [sp, #16]\nstp x23, x24, [sp, #32]\n"
    "stp x25, x26, [sp, #48]\nstp x27, x28, [sp, #64]\nstp x29, x30, [sp, #80]\n"
    "stp d8, d9, [sp, #96]\nstp d10, d11, [sp, #112]\nstp d12, d13, [sp, #128]\n"
    "stp d14, d15, [sp, #144]\nmov x9, sp\nstr x9, [x0]\nmov sp, x1\n"
    "ldp x19, x20, [sp]\nldp x21, x22, [sp, #16]\nldp x23, x24, [sp, #32]\n"
    "ldp x25, x26, [sp, #48]\nldp x27, x28, [sp, #64]\nldp x29, x30, [sp, #80]\n"
    "ldp d8, d9, [sp, #96]\nldp d10, d11, [sp, #112]\nldp d12, d13, [sp, #128]\n"
    "ldp d14, d15, [sp, #144]\nadd sp, sp, #160\nret\n");
constexpr int FRAME = 20, RETURN = 11;
#else
#include <ucontext.h>
#define CUDA_ON_CPU_UCONTEXT
#endif

#ifdef CUDA_ON_CPU_ADDRESS
extern "C" void __sanitizer_start_switch_fiber(void** save, const void* bottom, size_t size);
extern "C" void __sanitizer_finish_switch_fiber(void* saved, const void** bottom, size_t* size);
#endif
#ifdef CUDA_ON_CPU_THREAD
extern "C" void* __tsan_get_current_fiber();
extern "C" void* __tsan_create_fiber(unsigned flags);
extern "C" void __tsan_switch_to_fiber(void* fiber, unsigned flags);
extern "C" void __tsan_acquire(void* address);
extern "C" void __tsan_release(void* address);
constexpr unsigned UNORDERED = 1;  // switching must not count as synchronisation
#endif

#ifdef CUDA_ON_CPU_THREAD
constexpr size_t STACK = 32 << 10;
#else
constexpr size_t STACK = 256 << 10;
#endif

struct Thread;
struct Fiber {
    unsigned char* stack = nullptr;
    size_t size = 0;
    void* sanitizer = nullptr;  // AddressSanitizer's fake stack, ThreadSanitizer's fiber
    Thread* thread = nullptr;   // the CUDA thread that it runs
#ifdef CUDA_ON_CPU_UCONTEXT
    ucontext_t context;
#else
    void* top = nullptr;
#endif
};

static Fiber host;  // the scheduler, on the caller's stack
static Fiber* running = &host;
static std::vector<Fiber*> fibers, idle;  // all of them; those without a CUDA thread
#ifdef CUDA_ON_CPU_THREAD
static std::vector<Fiber*> ended, resting;  // see run_block
#else
static std::vector<Fiber*>& ended = idle;
#endif

static void switch_to(Fiber& to) {
    Fiber& from = *running;
    running = &to;
#ifdef CUDA_ON_CPU_ADDRESS
    __sanitizer_start_switch_fiber(&from.sanitizer, to.stack, to.size);
#endif
#ifdef CUDA_ON_CPU_THREAD
    __tsan_switch_to_fiber(to.sanitizer, UNORDERED);
#endif
#if defined(_WIN32)
    if (!from.top) from.top = IsThreadAFiber() ? GetCurrentFiber() : ConvertThreadToFiber(nullptr);
    SwitchToFiber(to.top);
#elif defined(CUDA_ON_CPU_UCONTEXT)
    swapcontext(&from.context, &to.context);
#else
    switch_stack(&from.top, to.top);
#endif
#ifdef CUDA_ON_CPU_ADDRESS
    __sanitizer_finish_switch_fiber(from.sanitizer, nullptr, nullptr);
#endif
}

static void run_threads();

static void fiber_main() {
#ifdef CUDA_ON_CPU_ADDRESS
    const void* bottom;
    __sanitizer_finish_switch_fiber(nullptr, &bottom, &host.size);
    host.stack = static_cast<unsigned char*>(const_cast<void*>(bottom));
#endif
    run_threads();
}

#ifdef _WIN32
static void WINAPI windows_fiber(void*) { fiber_main(); }

static Fiber* new_fiber() {
    auto* fiber = new Fiber;
    fiber->top = CreateFiberEx(0, STACK, 0, windows_fiber, nullptr);
    if (!fiber->top) { perror("cuda_on_cpu: no memory for a thread's stack"); abort(); }
    fibers.push_back(fiber);
    return fiber;
}
#else
static Fiber* new_fiber() {
    auto* fiber = new Fiber;
    fiber->size = STACK;  // pages are taken when they are touched; the lowest is a guard
    void* memory = mmap(nullptr, fiber->size, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) { perror("cuda_on_cpu: no memory for a thread's stack"); abort(); }
    mprotect(memory, 4096, PROT_NONE);
    fiber->stack = static_cast<unsigned char*>(memory);
#ifdef CUDA_ON_CPU_THREAD
    fiber->sanitizer = __tsan_create_fiber(0);
#endif
#ifdef CUDA_ON_CPU_UCONTEXT
    getcontext(&fiber->context);
    fiber->context.uc_stack.ss_sp = fiber->stack;
    fiber->context.uc_stack.ss_size = fiber->size;
    makecontext(&fiber->context, fiber_main, 0);
#else
    void** top = reinterpret_cast<void**>(fiber->stack + fiber->size) - FRAME;
    top[RETURN] = reinterpret_cast<void*>(&fiber_main);
    fiber->top = top;
#endif
    fibers.push_back(fiber);
    return fiber;
}

#endif

static void delete_fibers() {
    for (Fiber* fiber : fibers) {
#ifdef _WIN32
        DeleteFiber(fiber->top);
#else
        munmap(fiber->stack, fiber->size);
#endif
        delete fiber;
    }
    fibers.clear();
    idle.clear();
}

// ---- the threads of one block ----------------------------------------------------------------

struct Thread {
    enum State { READY, AT_BARRIER, AT_WARP, ENDED } state = READY;
    uint3 index{};
    Fiber* fiber = nullptr;
    int line = 0;  // where it waits, for what, with whom, and what it left there
    const char* name = "";
    unsigned mask = 0;
    void* mine = nullptr;
    Collective compute = nullptr;
    bool vote = false;
    int first_copy = 0, last_copy = 0;  // those on their way, in `copies`
};
using Threads = std::vector<Thread*>;

static uint64_t random_state;
static const Kernel* kernel;
static void** arguments;
static std::vector<Thread> threads;   // by their number in the block
static Threads order;                 // in which they start
static std::vector<size_t> warps;     // the first threads of the warps, in the order of their turns
static size_t started;

template <class T>
static void shuffle_order(std::vector<T>& items) {
    for (size_t n = items.size(); n > 1; --n) {
        random_state = random_state * 6364136223846793005u + 1442695040888963407u;
        std::swap(items[n - 1], items[(random_state >> 33) % n]);
    }
}

// For ThreadSanitizer: all that `before` did comes before all that `after` will do.
static void synchronise(const std::vector<Fiber*>& before, const std::vector<Fiber*>& after) {
#ifdef CUDA_ON_CPU_THREAD
    void* meeting = malloc(8);
    for (Fiber* fiber : before) {
        __tsan_switch_to_fiber(fiber->sanitizer, UNORDERED);
        __tsan_release(meeting);
    }
    for (Fiber* fiber : after) {
        __tsan_switch_to_fiber(fiber->sanitizer, UNORDERED);
        __tsan_acquire(meeting);
    }
    __tsan_switch_to_fiber(host.sanitizer, UNORDERED);
    free(meeting);
#else
    (void)before, (void)after;
#endif
}

static void run_threads() {  // what every fiber does, for ever
    for (;;) {
        while (started < order.size()) {
            Thread* thread = order[started++];
            thread->fiber = running;
            running->thread = thread;
            threadIdx = thread->index;
            kernel->call(arguments);
            running->thread->state = Thread::ENDED;
#ifdef CUDA_ON_CPU_THREAD
            break;  // to ThreadSanitizer a fiber is one thread
#endif
        }
        switch_to(host);
    }
}

static void wait(Thread::State state, int line, const char* name) {
    Thread& thread = *running->thread;
    thread.state = state;
    thread.line = line;
    thread.name = name;
    switch_to(host);
}

static bool block_vote;  // of the last barrier

bool wait_for_block(int line, bool vote) {
    running->thread->vote = vote;
    wait(Thread::AT_BARRIER, line, "__syncthreads");
    return block_vote;
}

void wait_for_warp(int line, const char* name, unsigned mask, void* mine, Collective compute) {
    Thread& thread = *running->thread;
    thread.mask = mask;
    thread.mine = mine;
    thread.compute = compute;
    bool named = mask >> lane_index() & 1;
    wait(Thread::AT_WARP, line, named ? name : "a warp operation whose mask leaves them out");
}

// How many copies of a thread can be on their way, and room for those of all threads: were it
// allocated by the threads, ThreadSanitizer would see them race for it.
constexpr int COPIES = 1024;
static std::vector<AsyncCopy> copies;

static AsyncCopy* copies_of(const Thread& thread) {
    return copies.data() + (&thread - threads.data()) * COPIES;
}

void start_copy(const AsyncCopy& copy) {
    Thread& thread = *running->thread;
    if (thread.last_copy == COPIES) { fputs("cuda_on_cpu: too many copies\n", stderr); abort(); }
    copies_of(thread)[thread.last_copy++] = copy;
}

bool next_copy(AsyncCopy& copy) {
    Thread& thread = *running->thread;
    if (thread.first_copy == thread.last_copy) return thread.first_copy = thread.last_copy = 0;
    copy = copies_of(thread)[thread.first_copy++];
    return true;
}

// The lanes that take part in lane's operation, if all of them have come (else none).
static Threads met_in_warp(size_t warp, size_t lane) {
    const Thread& first = threads[warp + lane];
    Threads group;
    for (size_t l = 0; l < 32 && warp + l < threads.size(); ++l) {
        Thread& other = threads[warp + l];
        if (!(first.mask >> l & 1) || other.state == Thread::ENDED) continue;
        if (other.state != Thread::AT_WARP || other.line != first.line || other.mask != first.mask)
            return {};
        group.push_back(&other);
    }
    return first.mask >> lane & 1 ? group : Threads{};
}

static void go_on(const Threads& group, Threads& ready) {
    std::vector<Fiber*> their_fibers;
    for (Thread* thread : group) {
        thread->state = Thread::READY;
        ready.push_back(thread);
        their_fibers.push_back(thread->fiber);
    }
    synchronise(their_fibers, their_fibers);
}

// The threads that have met whom they waited for. None: all have ended, or the kernel is wrong.
static Threads release_waiting() {
    Threads ready, group;
    for (size_t warp : warps) {  // the first that can go on does: it may run ahead of all others
        for (size_t t = warp; t < std::min(warp + 32, threads.size()); ++t) {
            if (threads[t].state != Thread::AT_WARP) continue;
            group = met_in_warp(warp, t % 32);
            if (group.empty()) continue;
            void* lanes[32] = {};
            for (Thread* thread : group) lanes[thread - &threads[warp]] = thread->mine;
            if (threads[t].compute) threads[t].compute(lanes);
            go_on(group, ready);
        }
        if (!ready.empty()) return ready;
    }
    group.clear();
    for (Thread& thread : threads)
        if (thread.state == Thread::AT_BARRIER && thread.line == threads[0].line)
            group.push_back(&thread);
    if (group.size() < threads.size()) return {};
    block_vote = false;
    for (Thread* thread : group) block_vote |= thread->vote;
    go_on(group, ready);
    return ready;
}

static std::string describe(uint3 i) {
    return "(" + std::to_string(i.x) + "," + std::to_string(i.y) + "," + std::to_string(i.z) + ")";
}

// Who waits where, when nobody can go on; empty when all threads have ended.
static std::string who_is_stuck() {
    std::map<std::tuple<Thread::State, int, std::string>, Threads> groups;
    bool waiting = false, in_warp = false;
    for (Thread& thread : threads) {
        bool ended = thread.state == Thread::ENDED;
        waiting |= !ended;
        in_warp |= thread.state == Thread::AT_WARP;
        groups[{thread.state, ended ? 0 : thread.line, ended ? "" : thread.name}].push_back(&thread);
    }
    if (!waiting) return "";
    std::string text = in_warp ? "deadlock" : "divergent barrier";
    text += " in block " + describe(blockIdx) + ":";
    for (auto& [where, group] : groups) {
        auto& [state, line, name] = where;
        text += " " + std::to_string(group.size()) + " of " + std::to_string(threads.size()) +
                " threads (the first is " + describe(group[0]->index) + ") ";
        text += state == Thread::ENDED ? "have ended;"
                                       : "wait at " + name + " in line " + std::to_string(line) + ";";
    }
    text.pop_back();
    return text;
}

static void resume(Fiber* fiber) {
    if (fiber->thread) threadIdx = fiber->thread->index;
    switch_to(*fiber);
    if (fiber->thread->state == Thread::ENDED) {
        fiber->thread = nullptr;
        ended.push_back(fiber);
    }
}

static void start_one() {
    if (idle.empty()) idle.push_back(new_fiber());
    Fiber* fiber = idle.back();
    idle.pop_back();
    resume(fiber);
}

#if defined(_WIN32)  // the linker sorts what stands behind the $
alignas(4096) static unsigned char __start_cuda_shared[1]
    __attribute__((section(".cudash$a"), used));
static unsigned char __stop_cuda_shared[1] __attribute__((section(".cudash$z"), used));
#elif defined(__APPLE__)
extern unsigned char __start_cuda_shared[] __asm__("section$start$__DATA$cuda_shared");
extern unsigned char __stop_cuda_shared[] __asm__("section$end$__DATA$cuda_shared");
#else
extern "C" unsigned char __start_cuda_shared[], __stop_cuda_shared[];
#endif
// So that the section is there, and ends with a page, in kernels without shared memory, too.
alignas(4096) static volatile unsigned char last_page[4096]
    __attribute__((section(CUDA_SHARED_SECTION), used));

unsigned char* dynamic_shared;  // an allocation of its own, so that the byte behind it is out of bounds
static size_t dynamic_bytes;

// Shared memory holds garbage when a block starts: NaN as a float, -1 as an integer.
static void poison_shared() {
#ifdef CUDA_ON_CPU_THREAD
    static void* place = mmap(nullptr, 1 << 18, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    dynamic_shared = static_cast<unsigned char*>(
        mmap(place, 1 << 18, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
#else
    free(dynamic_shared);
    dynamic_shared = static_cast<unsigned char*>(malloc(dynamic_bytes));
#endif
    for (size_t i = 0; i < dynamic_bytes; ++i) ((volatile unsigned char*)dynamic_shared)[i] = 0xFF;
    size_t bytes = __stop_cuda_shared - __start_cuda_shared;
#ifdef CUDA_ON_CPU_THREAD
    mmap(__start_cuda_shared, bytes, PROT_READ | PROT_WRITE,
         MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
#endif
    last_page[0] = 0;  // some linkers leave out what nobody uses
    for (size_t i = 0; i < bytes; ++i) ((volatile unsigned char*)__start_cuda_shared)[i] = 0xFF;
}

static std::string run_block() {
#ifdef CUDA_ON_CPU_THREAD
    // A fiber that serves two threads orders them. So each thread of a block has one of its own, and
    // two sets take turns: races between a block and the next in the shuffled order are seen, too.
    idle.insert(idle.end(), ended.begin(), ended.end());
    ended.clear();
    idle.swap(resting);
    while (idle.size() < threads.size()) idle.push_back(new_fiber());
#endif
    poison_shared();
    synchronise({&host}, idle);
    for (Thread& thread : threads) {
        thread.state = Thread::READY;
        thread.first_copy = thread.last_copy = 0;
    }
    shuffle_order(order);
    shuffle_order(warps);
    for (started = 0; started < order.size();) start_one();
    for (Threads ready; !(ready = release_waiting()).empty();) {
        shuffle_order(ready);
        for (Thread* thread : ready) resume(thread->fiber);
    }
    std::string stuck = who_is_stuck();
    if (stuck.empty()) return stuck;  // the stacks serve the next block
    delete_fibers();  // some are in the midst of a thread
    return stuck;
}

}  // namespace cuda_on_cpu

using namespace cuda_on_cpu;

// Run kernel `name` over the grid. 0: done; 1: it went wrong, as `message` says.
extern "C" EXPORTED int cuda_on_cpu_launch(
    const char* name, void** args, const unsigned sizes[7], uint64_t seed, char message[4096]) {
    for (kernel = kernels; kernel->name && std::string(name) != kernel->name;) ++kernel;
    if (!kernel->name) return snprintf(message, 4096, "no such kernel"), 1;
#ifdef CUDA_ON_CPU_THREAD
    host.sanitizer = __tsan_get_current_fiber();
#endif
    arguments = args;
    random_state = seed;
    gridDim = {sizes[0], sizes[1], sizes[2]};
    blockDim = {sizes[3], sizes[4], sizes[5]};
    dynamic_bytes = sizes[6];
    threads.assign(size_t(blockDim.x) * blockDim.y * blockDim.z, Thread());
    if (dynamic_bytes) copies.resize(std::max(copies.size(), threads.size() * COPIES));
    order.clear();
    warps.clear();
    for (size_t t = 0; t < threads.size(); t += 32) warps.push_back(t);
    for (size_t t = 0; t < threads.size(); ++t) {
        threads[t].index = {unsigned(t % blockDim.x), unsigned(t / blockDim.x % blockDim.y),
                            unsigned(t / blockDim.x / blockDim.y)};
        order.push_back(&threads[t]);
    }
    std::vector<uint3> blocks;
    for (unsigned z = 0; z < gridDim.z; ++z)
        for (unsigned y = 0; y < gridDim.y; ++y)
            for (unsigned x = 0; x < gridDim.x; ++x) blocks.push_back({x, y, z});
    shuffle_order(blocks);
    for (uint3 index : blocks) {
        blockIdx = index;
        std::string stuck = run_block();
        if (!stuck.empty()) return snprintf(message, 4096, "%s", stuck.c_str()), 1;
    }
    synchronise(fibers, {&host});
    return 0;
}

#if defined(CUDA_ON_CPU_ADDRESS) || defined(CUDA_ON_CPU_THREAD)
// stdin, again and again: "kernel grid[3] block[3] shared seed n size[n] is_array[n]\n", then the
// arguments' bytes; stdout: the arrays' bytes after the run. Each argument has an allocation of its
// own, so that the byte behind it is out of bounds. A launch that goes wrong ends the program.
int main() {
    char name[256], message[4096];
    unsigned sizes[7];
    size_t seed, n;
    while (scanf("%255s", name) == 1) {
        for (unsigned& size : sizes)
            if (scanf("%u", &size) != 1) return 2;
        if (scanf("%zu %zu", &seed, &n) != 2) return 2;
        std::vector<size_t> numbers(2 * n);
        for (size_t& number : numbers)
            if (scanf("%zu", &number) != 1) return 2;
        getchar();
        std::vector<void*> memory(n), args(n);
        for (size_t i = 0; i < n; ++i) {
            memory[i] = malloc(numbers[i]);
            if (fread(memory[i], 1, numbers[i], stdin) != numbers[i]) return 2;
            args[i] = numbers[n + i] ? &memory[i] : memory[i];
        }
        if (cuda_on_cpu_launch(name, args.data(), sizes, seed, message))
            fprintf(stderr, "%s", message), _exit(1);
        fwrite("\n", 1, 1, stdout);  // it went well
        for (size_t i = 0; i < n; ++i) {
            if (numbers[n + i]) fwrite(memory[i], 1, numbers[i], stdout);
            free(memory[i]);
        }
        fflush(stdout);
    }
    _exit(0);
}
#endif
