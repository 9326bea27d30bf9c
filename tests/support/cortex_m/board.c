/* Classifies the raw images in a file of the host, on a board without a C library: prints for each the class, the
   instructions that it took, and the bits of the logits.

   Calls to the host are those of ARM's semihosting. SysTick runs with the processor's 25 MHz, of which QEMU makes one
   tick in 40 instructions when an instruction takes a nanosecond. */
#include <stddef.h>
#include <stdint.h>

#include "net.h"

enum { OPEN = 1, WRITE_TEXT = 4, READ = 6, COMMAND_LINE = 21, EXIT = 24 };

extern uint32_t stack_top;
static uint8_t pixels[NET_PIXELS];
static float logits[NET_CLASSES];
static char command_line[512];

/* Compilers call these two. */
void *memset(void *to, int value, size_t count)
{
    for (volatile uint8_t *byte = to; count > 0; count--)
        *byte++ = (uint8_t)value;
    return to;
}

void *memcpy(void *to, const void *from, size_t count)
{
    volatile uint8_t *byte = to;
    for (const uint8_t *source = from; count > 0; count--)
        *byte++ = *source++;
    return to;
}

static uint32_t host(uint32_t what, const void *argument)
{
    register uint32_t r0 __asm("r0") = what;
    register const void *r1 __asm("r1") = argument;
    __asm volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

static void print(uint32_t number)
{
    char text[12] = {0};
    int place = 10;
    text[place] = ' ';
    do
        text[--place] = (char)('0' + number % 10);
    while ((number /= 10) > 0);
    host(WRITE_TEXT, text + place);
}

static void run(void)
{
    volatile uint32_t *const systick = (volatile uint32_t *)0xE000E010;
    uint32_t line[2] = {0, sizeof command_line}, open[3] = {0, 1, 0}, file;
    const char *name = command_line;
    line[0] = (uint32_t)command_line;
    host(COMMAND_LINE, line);
    while (*name != ' ')
        name++;
    open[0] = (uint32_t)++name;
    while (name[open[2]] != 0)
        open[2]++;
    file = host(OPEN, open);
    systick[1] = 0xFFFFFF;
    systick[2] = 0;
    systick[0] = 5;
    for (;;) {
        const uint32_t read[3] = {file, (uint32_t)pixels, sizeof pixels};
        uint32_t before, ticks;
        int best;
        if (host(READ, read) != 0)
            break;
        before = systick[2];
        best = net_predict(pixels, logits);
        ticks = (before - systick[2]) & 0xFFFFFF;
        print((uint32_t)best);
        print(ticks * 40);
        for (int k = 0; k < NET_CLASSES; k++) {
            const union { float number; uint32_t bits; } both = {logits[k]};
            print(both.bits);
        }
        host(WRITE_TEXT, "\n");
    }
    host(EXIT, (const void *)0x20026);
}

static void reset(void)
{
    /* Coprocessors 10 and 11 are the floating point unit. */
    *(volatile uint32_t *)0xE000ED88 |= 0xFu << 20;
    __asm volatile("dsb\n isb");
    run();
}

static void fault(void)
{
    host(EXIT, (const void *)0x20023);
}

/* What the processor reads first: the stack, where to begin, and what to do about faults. */
__attribute__((section(".vectors"), used)) static const struct {
    const void *stack;
    void (*handlers[6])(void);
} vectors = {&stack_top, {reset, fault, fault, fault, fault, fault}};
