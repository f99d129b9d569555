/* Prints the frequency of this host's time stamp counter in kHz. QEMU's TCG gives it to L1 as it is; L1 would have to measure
 * it, and measures nonsense when the host takes the CPU away from QEMU meanwhile. */
#include <stdio.h>
#include <time.h>
#include <x86intrin.h>

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC_RAW, &t);
	return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

int main(void)
{
	double start_ms = now();
	unsigned long long start = __rdtsc();
	struct timespec pause = { .tv_nsec = 50000000 };
	nanosleep(&pause, NULL);
	double ms = now() - start_ms;
	printf("%.0f\n", (double)(__rdtsc() - start) / ms);
	return 0;
}
