/* The functions of macOS that utils/macos.py calls, for tests on other systems. They record nothing but the QoS class. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <stdio.h>

static int number_of(const char *variable) {
    const char *text = getenv(variable);
    return text == NULL ? 0 : atoi(text);
}

int sysctlbyname(const char *name, void *value, size_t *size, void *new_value, size_t new_size) {
    int32_t number = -1;
    if (strcmp(name, "machdep.cpu.brand_string") == 0) {
        const char *brand = "Apple M5 Max";
        if (value != NULL) memcpy(value, brand, strlen(brand) + 1);
        *size = strlen(brand) + 1;
        return 0;
    }
    if (strcmp(name, "kern.memorystatus_vm_pressure_level") == 0) number = number_of("FAKE_PRESSURE");
    if (strcmp(name, "iogpu.wired_limit_mb") == 0) number = number_of("FAKE_WIRED_LIMIT");
    if (number < 0) return -1;
    if (value != NULL) memcpy(value, &number, sizeof number);
    *size = sizeof number;
    return 0;
}

struct rusage_info_v0 { /* as in <sys/resource.h> of macOS */
    uint8_t ri_uuid[16];
    uint64_t ri_user_time, ri_system_time, ri_pkg_idle_wkups, ri_interrupt_wkups, ri_pageins;
    uint64_t ri_wired_size, ri_resident_size, ri_phys_footprint, ri_proc_start_abstime, ri_proc_exit_abstime;
};

int proc_pid_rusage(int pid, int flavor, void *buffer) {
    struct rusage_info_v0 *info = buffer;
    if (pid <= 0 || flavor != 0) return -1;
    memset(info, 0xff, sizeof *info);
    info->ri_phys_footprint = (uint64_t)pid << 32;
    return 0;
}

unsigned int qos_class = 0;
int qos_priority = -1;

int pthread_set_qos_class_self_np(unsigned int class, int priority) {
    qos_class = class;
    qos_priority = priority;
    return 0;
}

static char process_info_class, process_info;

void *objc_getClass(const char *name) { return strcmp(name, "NSProcessInfo") == 0 ? &process_info_class : NULL; }

void *sel_registerName(const char *name) { return (void *)name; }

void *objc_msgSend(void *receiver, const char *selector) {
    if (receiver == &process_info_class && strcmp(selector, "processInfo") == 0) return &process_info;
    if (receiver != &process_info) abort();
    if (strcmp(selector, "isLowPowerModeEnabled") == 0) return (void *)(uintptr_t)number_of("FAKE_LOW_POWER");
    if (strcmp(selector, "thermalState") == 0) return (void *)(uintptr_t)number_of("FAKE_THERMAL_STATE");
    abort();
}
