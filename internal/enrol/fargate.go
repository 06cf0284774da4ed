package enrol

import (
	"slices"
	"strconv"
	"strings"

	"github.com/isthmus-mesh/isthmus/internal/diag"
)

// maxFargateStop is how many seconds a container may take to stop on Fargate.
const maxFargateStop = 120

// sizes are the memory sizes in MiB that Fargate has for one number of CPU units: from low to high in steps.
type sizes struct{ cpu, low, high, step int }

// fargateSizes is AWS's table. A CPU value that is not in it is left to ECS to judge.
func fargateSizes() []sizes {
	return []sizes{{256, 512, 2048, 512}, {512, 1024, 4096, 1024}, {1024, 2048, 8192, 1024}, {2048, 4096, 16384, 1024},
		{4096, 8192, 30720, 1024}, {8192, 16384, 61440, 4096}, {16384, 32768, 122880, 8192}}
}

// checkFargate refuses what Fargate refuses: a pair of CPU and memory that it does not have, and containers that reserve
// more than the task has.
func checkFargate(def Definition, apps []map[string]any, opt Options) error {
	if opt.StopTimeout > maxFargateStop {
		return diag.Newf(diag.ResourcesRefused, "the proxy's stop timeout is %ds and Fargate allows %ds", opt.StopTimeout, maxFargateStop).
			WithFix("use --stop-timeout %ds or less", maxFargateStop)
	}
	cpu, memory := units(def.Task["cpu"], "vcpu"), units(def.Task["memory"], "gb")
	if cpu == 0 || memory == 0 {
		return diag.New(diag.ResourcesRefused, "Fargate wants cpu and memory of the whole task in its task definition")
	}
	i := slices.IndexFunc(fargateSizes(), func(s sizes) bool { return s.cpu == cpu })
	if i < 0 {
		return nil
	}
	have := fargateSizes()[i]
	// 0.25 vCPU has 512, 1024 and 2048 MiB: the steps double there.
	if memory < have.low || memory > have.high || memory%have.step != 0 || cpu == 256 && memory == 1536 {
		return diag.Newf(diag.ResourcesRefused, "Fargate has no size of %d CPU units and %d MiB", cpu, memory).
			WithFix("with %d CPU units use memory from %d to %d MiB in steps of %d", cpu, have.low, have.high, have.step)
	}
	usedCPU, usedMemory := opt.CPU, opt.MemoryMiB
	for _, app := range apps {
		c, _ := number(app["cpu"])
		m, reserved := number(app["memoryReservation"])
		if !reserved {
			m, _ = number(app["memory"])
		}
		usedCPU, usedMemory = usedCPU+c, usedMemory+m
	}
	switch {
	case usedMemory > memory:
		return diag.Newf(diag.ResourcesRefused, "with the proxy the containers reserve %d MiB and the task has %d", usedMemory, memory).
			WithFix("raise memory of the task definition, lower memoryReservation (or memory) of a container, or give the proxy less with --memory-reservation")
	case usedCPU > cpu:
		return diag.Newf(diag.ResourcesRefused, "with the proxy the containers reserve %d CPU units and the task has %d", usedCPU, cpu).
			WithFix("raise cpu of the task definition, lower cpu of a container, or give the proxy less with --cpu")
	}
	return nil
}

// units reads a task's cpu or memory, which may be written as 256, "256", "0.25 vCPU" or "1 GB". 0 means that it is not
// there, or cannot be read.
func units(v any, unit string) int {
	if n, ok := number(v); ok {
		return n
	}
	text, _ := v.(string)
	text = strings.ToLower(strings.TrimSpace(text))
	scale := 1.0
	if rest, ok := strings.CutSuffix(text, unit); ok {
		text, scale = strings.TrimSpace(rest), 1024
	}
	f, err := strconv.ParseFloat(text, 64)
	if err != nil || f < 0 || f > 1<<20 {
		return 0
	}
	return int(f * scale)
}
