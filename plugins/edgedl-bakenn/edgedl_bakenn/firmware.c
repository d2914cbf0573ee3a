/* A firmware that runs bakenn's C a few times on one sample, each time between marks, says the output and ends.
 *
 * A mark is an instruction that nothing else here has, MOVW ip, 0x4544, which counter.c looks for; ISB ends QEMU's
 * block there, so that what follows is not counted with what is before.
 * Semihosting: https://github.com/ARM-software/abi-aa/blob/main/semihosting/semihosting.rst */
#include <stdint.h>

#include "bknn_model.h"
#include "sample.h"

#define MARK __asm volatile("movw ip, #0x4544\n isb" ::: "ip", "memory")
enum { SYS_WRITE0 = 0x04, SYS_EXIT_EXTENDED = 0x20, APPLICATION_EXIT = 0x20026 };

extern uint32_t stack_top;
static int8_t output[BKNN_MODEL_OUTPUT_SIZE];
static _Alignas(BKNN_MODEL_ARENA_ALIGNMENT) uint8_t arena[BKNN_MODEL_ARENA_SIZE ? BKNN_MODEL_ARENA_SIZE : 1];

static void semihost(int operation, const volatile void *argument)
{
    register int r0 __asm("r0") = operation;
    register const volatile void *r1 __asm("r1") = argument;
    __asm volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
}

static void leave(uint32_t code)
{
    uint32_t argument[2] = {APPLICATION_EXIT, code};
    for (;;) semihost(SYS_EXIT_EXTENDED, argument);
}

static void fault(void)
{
    semihost(SYS_WRITE0, "a fault of the processor\n");
    leave(1);
}

void reset(void)
{
    static const char digits[] = "0123456789abcdef";
    for (int i = 0; i < INFERENCES; i++) {
        MARK;
        bknn_model_infer(BKNN_MODEL_ARENA_SIZE ? arena : 0, sample, output);
        MARK;
    }
    for (uint32_t i = 0; i < BKNN_MODEL_OUTPUT_SIZE; i++) {
        char pair[3] = {digits[(uint8_t)output[i] >> 4], digits[output[i] & 15], 0};
        semihost(SYS_WRITE0, pair);
    }
    semihost(SYS_WRITE0, "\n");
    leave(0);
}

__attribute__((section(".vectors"), used)) static void *const vectors[16] = {&stack_top, reset, fault, fault,
                                                                             fault,      fault, fault};
