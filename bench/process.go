package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// process is a helper, or one of the proxies that are measured.
type process struct {
	name  string
	cmd   *exec.Cmd
	stdin io.WriteCloser
	enc   *json.Encoder // of an agent
	dec   *json.Decoder
}

// start runs a program in a namespace until the run ends. Its output goes to a file, which is shown if it fails.
func (ns *netns) start(h *harness, name string, env []string, program string, args ...string) *process {
	p := &process{name: name, cmd: exec.Command(program, args...)}
	log, err := os.Create(filepath.Join(h.dir, name+".log"))
	h.must("start "+name, err)
	defer log.Close()
	p.cmd.Env = append([]string{"PATH=" + os.Getenv("PATH")}, env...)
	p.cmd.Dir = h.dir
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.launch(h, ns)
	return p
}

// helper runs this program in a role and waits until it is ready.
func (ns *netns) helper(h *harness, name, what string, env ...string) *process {
	self, err := os.Executable()
	h.must("start "+name, err)
	p := &process{name: name, cmd: exec.Command(self)}
	p.cmd.Env = append([]string{role + "=" + what}, env...)
	p.cmd.Stderr = h.stderr
	out, err := p.cmd.StdoutPipe()
	h.must("start "+name, err)
	p.stdin, err = p.cmd.StdinPipe()
	h.must("start "+name, err)
	p.launch(h, ns)
	if what == roleAgent {
		p.enc, p.dec = json.NewEncoder(p.stdin), json.NewDecoder(out)
		return p
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		h.must("start "+name, fmt.Errorf("it said %q: %w", line, err))
	}
	return p
}

func (p *process) launch(h *harness, ns *netns) {
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // the namespace's thread lives as long as the run
	h.must("start "+p.name, ns.do(p.cmd.Start))
	exited := make(chan struct{})
	go func() {
		defer close(exited)
		_ = p.cmd.Wait()
	}()
	var once sync.Once
	h.Cleanup(func() {
		once.Do(func() {
			if p.stdin != nil {
				p.stdin.Close()
			}
			_ = p.cmd.Process.Kill()
			<-exited
		})
	})
}

// run gives an agent a job.
func (p *process) run(j job) (outcome, error) {
	var o outcome
	err := p.enc.Encode(j)
	if err == nil {
		err = p.dec.Decode(&o)
	}
	if err == nil && o.Err != "" {
		err = errors.New(o.Err)
	}
	return o, err
}

// cpu is the processor time a process has used, in user and kernel, to the nanosecond.
func (p *process) cpu() time.Duration {
	const schedClock = 2
	var ts unix.Timespec
	if unix.ClockGettime(int32(^p.cmd.Process.Pid<<3|schedClock), &ts) != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// rss is the resident memory of a process in bytes, program text included.
func (p *process) rss() int64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "VmRSS:" {
			kib, _ := strconv.ParseInt(f[1], 10, 64)
			return kib << 10
		}
	}
	return 0
}

// settle waits until the memory of processes does not shrink or grow any more, and returns it.
func settle(h *harness, ps ...*process) []int64 {
	last := make([]int64, len(ps))
	for range 10 {
		pause(h.ctx, 700*time.Millisecond)
		calm := true
		for i, p := range ps {
			now := p.rss()
			if d := now - last[i]; d > now/100 || d < -now/100 {
				calm = false
			}
			last[i] = now
		}
		if calm {
			break
		}
	}
	return last
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// until polls a condition in a namespace.
func (ns *netns) until(h *harness, what string, p *process, ok func() bool) {
	for deadline := time.Now().Add(30 * time.Second); ; {
		var met bool
		_ = ns.do(func() error { met = ok(); return nil })
		if met {
			return
		}
		if h.ctx.Err() != nil || time.Now().After(deadline) {
			log, _ := os.ReadFile(filepath.Join(h.dir, p.name+".log"))
			h.Fatalf("%s: %s: not within 30s; its log ends with:\n%s", p.name, what, log[max(0, len(log)-2000):])
		}
		pause(h.ctx, 20*time.Millisecond)
	}
}

// ready asks a ztunnel whether it is ready.
func ready() bool {
	c, err := net.DialTimeout("tcp4", "127.0.0.1:15021", time.Second)
	if err != nil {
		return false
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Second))
	fmt.Fprint(c, "GET /healthz/ready HTTP/1.0\r\nHost: localhost\r\n\r\n")
	line, _ := bufio.NewReader(c).ReadString('\n')
	return strings.Contains(line, " 200 ")
}

// reachable reports whether somebody listens.
func reachable(addr string) bool {
	c, err := net.DialTimeout("tcp4", addr, time.Second)
	if err != nil {
		return false
	}
	c.Close()
	return true
}
