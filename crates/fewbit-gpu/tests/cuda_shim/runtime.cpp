// Runs kernels on the host: blocks one after another, the threads of a block as fibres.
#include "shim.h"

#include <setjmp.h>
#include <stdio.h>
#include <ucontext.h>

#include <array>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace {

struct Kernel {
    u32 threads;
    u64 params_bytes;
    void (*run)(void **arguments);
};

std::map<std::string, Kernel> &kernels() {
    static std::map<std::string, Kernel> all;
    return all;
}

enum class State { READY, WAITS_FOR_WARP, WAITS_FOR_BLOCK, ENDED };

struct Fibre {
    jmp_buf at;
    State state = State::ENDED;
    bool has_begun = false;
    std::unique_ptr<char[]> stack;
    // Exchanges so far; two take turns with the memory of a warp.
    u32 n_exchanges = 0;
};

struct Machine {
    shim::Index index;
    jmp_buf scheduler;
    std::vector<Fibre> fibres;
    std::vector<std::array<u32[32][8], 2>> warps;
    std::vector<u8> memory;
    u8 *dynamic = nullptr;
    const Kernel *kernel = nullptr;
    void **arguments = nullptr;
};

const size_t STACK = 128 << 10;
const size_t GUARD = 64;

Machine &machine() {
    thread_local Machine machine;
    return machine;
}

// Goes back to the scheduler until the fibre may go on.
void wait(State state) {
    Machine &m = machine();
    Fibre &fibre = m.fibres[m.index.thread];
    fibre.state = state;
    if (_setjmp(fibre.at) == 0) _longjmp(m.scheduler, 1);
}

// A fibre runs one thread of a block after another.
void body() {
    for (;;) {
        Machine &m = machine();
        m.kernel->run(m.arguments);
        wait(State::ENDED);
    }
}

void resume(Machine &m, u32 thread) {
    Fibre &fibre = m.fibres[thread];
    m.index.thread = thread;
    if (_setjmp(m.scheduler) != 0) return;
    if (fibre.has_begun) _longjmp(fibre.at, 1);
    fibre.has_begun = true;
    fibre.stack.reset(new char[STACK]);
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = fibre.stack.get();
    context.uc_stack.ss_size = STACK;
    context.uc_link = nullptr;
    makecontext(&context, body, 0);
    setcontext(&context);
}

// Runs a block. Returns whether all threads ended.
bool run_block(Machine &m, u32 threads) {
    for (u32 t = 0; t < threads; t++) m.fibres[t].state = State::READY;
    for (;;) {
        for (u32 warp = 0; warp < threads; warp += 32) {
            bool goes_on = true;
            while (goes_on) {
                u32 waiting = 0;
                for (u32 t = warp; t < warp + 32; t++) {
                    if (m.fibres[t].state == State::READY) resume(m, t);
                    waiting += m.fibres[t].state == State::WAITS_FOR_WARP;
                }
                goes_on = waiting == 32;
                if (goes_on) {
                    for (u32 t = warp; t < warp + 32; t++) m.fibres[t].state = State::READY;
                }
            }
        }
        u32 ended = 0, waiting = 0;
        for (u32 t = 0; t < threads; t++) {
            ended += m.fibres[t].state == State::ENDED;
            waiting += m.fibres[t].state == State::WAITS_FOR_BLOCK;
        }
        if (ended == threads) return true;
        if (ended + waiting != threads) return false;
        for (u32 t = 0; t < threads; t++) {
            if (m.fibres[t].state == State::WAITS_FOR_BLOCK) m.fibres[t].state = State::READY;
        }
    }
}

int fail(char *error, size_t bytes, const std::string &text) {
    snprintf(error, bytes, "%s", text.c_str());
    return 1;
}

}  // namespace

namespace shim {

Index &index() { return machine().index; }

u8 *dynamic_memory() { return machine().dynamic; }

void wait_for_block() { wait(State::WAITS_FOR_BLOCK); }

const u32 (*exchange(const u32 *words, u32 n))[8] {
    Machine &m = machine();
    u32 thread = m.index.thread;
    u32(*slots)[8] = m.warps[thread / 32][m.fibres[thread].n_exchanges++ % 2];
    memcpy(slots[thread % 32], words, n * sizeof(u32));
    wait(State::WAITS_FOR_WARP);
    return slots;
}

Register::Register(const char *name, u32 threads, u64 params_bytes, void (*run)(void **arguments)) {
    kernels()[name] = Kernel{threads, params_bytes, run};
}

}  // namespace shim

// The bytes of a kernel's parameters; 0 if there is no kernel of this name, which is `module.kernel`.
extern "C" u64 fewbit_params_bytes(const char *name) {
    auto found = kernels().find(name);
    return found == kernels().end() ? 0 : found->second.params_bytes;
}

// Runs a kernel until its end, with arguments as `cuLaunchKernel` takes them. Returns 0, or another number after writing an
// error.
extern "C" int fewbit_launch(const char *name, const u32 *grid, u32 block, u32 shared, void **arguments, char *error,
                             size_t error_bytes) {
    auto found = kernels().find(name);
    if (found == kernels().end()) return fail(error, error_bytes, std::string(name) + ": there is no such kernel");
    const Kernel &kernel = found->second;
    if (block == 0 || block % 32 != 0 || block > kernel.threads || shared > 48 << 10 || !grid[0] || !grid[1] || !grid[2] ||
        grid[1] > 65535 || grid[2] > 65535) {
        return fail(error, error_bytes, std::string(name) + ": a block or a grid that CUDA would refuse");
    }
    Machine &m = machine();
    m.kernel = &kernel;
    m.arguments = arguments;
    if (m.fibres.size() < block) m.fibres.resize(block);
    m.warps.resize(m.fibres.size() / 32);
    m.memory.assign(shared + GUARD + 16, 0xa5);
    m.dynamic = m.memory.data() + (16 - reinterpret_cast<uintptr_t>(m.memory.data()) % 16) % 16;
    memcpy(m.index.grid, grid, sizeof m.index.grid);
    for (u32 z = 0; z < grid[2]; z++) {
        for (u32 y = 0; y < grid[1]; y++) {
            for (u32 x = 0; x < grid[0]; x++) {
                m.index.block[0] = x, m.index.block[1] = y, m.index.block[2] = z;
                if (!run_block(m, block)) {
                    m.fibres.clear();
                    return fail(error, error_bytes, std::string(name) + ": threads wait for others that do not come");
                }
                for (size_t i = shared; i < shared + GUARD; i++) {
                    if (m.dynamic[i] != 0xa5) {
                        return fail(error, error_bytes, std::string(name) + ": writes beyond its shared memory");
                    }
                }
            }
        }
    }
    return 0;
}
