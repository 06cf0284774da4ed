package main

import (
	"fmt"
	"strings"
	"time"
)

// metric is a figure that a turn yields. A relative one is judged by its ratio to the same figure of another contestant
// in the same round.
type metric struct {
	name   string
	unit   string
	more   bool // more is better
	reach  float64
	of     string // the contestant that reach refers to; "" means that nothing is demanded
	value  func(o outcome, cpu time.Duration) float64
	detail bool // told in the lines for benchstat and in the second table
}

// turn is a job that every contestant does once per round.
type turn struct {
	name    string
	quick   bool
	job     func(c *contestant, round int, o options) job
	metrics []metric
}

// Peers of connect/cold: each is met once, so that coldNet must have enough for all rounds.
const (
	coldPeers = 20 // per round
	maxRounds = 50
)

func (b *bench) turns() []turn {
	var ts []turn
	for _, n := range []int{1, 32} {
		name := fmt.Sprintf("throughput/streams=%d", n)
		ts = append(ts, turn{name, true, func(c *contestant, _ int, o options) job {
			return job{Kind: jobThroughput, Addr: c.sink, SOCKS: c.socks, Conns: n, Size: 64 << 10, For: o.duration}
		}, []metric{
			{name: name, unit: "MB/s", more: true, reach: 0.85, of: "tls", value: func(o outcome, _ time.Duration) float64 { return o.Count / o.Elapsed.Seconds() / 1e6 }},
			{name: name + "/cpu", unit: "cpu-ns/KiB", detail: true, value: func(o outcome, cpu time.Duration) float64 { return float64(cpu) / (o.Count / 1024) }},
		}})
	}
	for _, size := range []int{100, 4096} {
		for _, n := range []int{1, 64, 1000} {
			name := fmt.Sprintf("request/bytes=%d/conns=%d", size, n)
			ts = append(ts, turn{name, size == 100 && n < 1000, func(c *contestant, _ int, o options) job {
				return job{Kind: jobLatency, Addr: c.echo, SOCKS: c.socks, Conns: n, Size: size, For: o.duration}
			}, []metric{
				{name: name + "/p50", unit: "us", reach: 1.15, of: "tls", value: func(o outcome, _ time.Duration) float64 { return us(o.P50) }},
				{name: name + "/p99", unit: "us", reach: 1.15, of: "tls", value: func(o outcome, _ time.Duration) float64 { return us(o.P99) }},
				{name: name + "/cpu", unit: "cpu-us/req", detail: true, value: perCount},
			}})
		}
	}
	return append(ts,
		turn{"connect/warm", true, func(c *contestant, _ int, o options) job {
			return job{Kind: jobConnect, Addr: c.echo, SOCKS: c.socks, Conns: 8, Size: 100, For: o.duration}
		}, []metric{
			{name: "connect/warm", unit: "conn/s", more: true, reach: 3, of: "tls", value: func(o outcome, _ time.Duration) float64 { return o.Count / o.Elapsed.Seconds() }},
			{name: "connect/warm/cpu", unit: "cpu-us/conn", detail: true, value: perCount},
		}},
		turn{"connect/cold", true, func(c *contestant, round int, _ options) job {
			j := job{Kind: jobCold, SOCKS: c.socks, Size: 100}
			if c.cold != nil {
				j.Addrs = c.cold[round*coldPeers : (round+1)*coldPeers]
			}
			for len(j.Addrs) < coldPeers {
				j.Addrs = append(j.Addrs, c.echo)
			}
			return j
		}, []metric{
			{name: "connect/cold/p50", unit: "us", reach: 1.2, of: "tls", value: func(o outcome, _ time.Duration) float64 { return us(o.P50) }},
			{name: "connect/cold/cpu", unit: "cpu-us/conn", detail: true, value: perCount},
		}},
	)
}

func us(d time.Duration) float64 { return float64(d) / 1e3 }

func perCount(o outcome, cpu time.Duration) float64 { return us(cpu) / o.Count }

// named reports whether a figure is to be measured.
func (o options) named(figure string) bool {
	if o.figures == "" {
		return true
	}
	for part := range strings.SplitSeq(o.figures, ",") {
		if end, whole := strings.CutSuffix(part, "$"); whole && strings.HasSuffix(figure, end) {
			return true
		}
		if strings.Contains(figure, part) {
			return true
		}
	}
	return false
}

// measure lets everybody have a turn, round by round, so that whatever else the machine does hits all alike.
func (b *bench) measure() {
	for _, t := range b.turns() {
		if b.o.quick && !t.quick || !b.o.named(t.name) {
			continue
		}
		b.h.progress("measuring %s", t.name)
		for _, m := range t.metrics {
			b.rep.declare(m)
		}
		for round := range b.o.rounds {
			for i := range b.all {
				// Nobody always goes first, or always after the same one.
				c := b.all[(i+round)%len(b.all)]
				b.turn(t, c, round)
			}
		}
	}
	if b.o.named("memory/idle") {
		b.idle()
	}
}

func (b *bench) turn(t turn, c *contestant, round int) {
	before := c.cpu()
	o, err := c.agent.run(t.job(c, round, b.o))
	if err != nil || o.Count == 0 {
		b.h.progress("  %s failed in round %d: %v", c.name, round+1, err)
		b.rep.remark("%s, %s, round %d: %v", t.name, c.name, round+1, err)
		return
	}
	spent := c.cpu() - before
	for _, m := range t.metrics {
		b.rep.sample(m.name, c.name, round, m.value(o, spent))
	}
}

// cpu is what everybody on the path has used: load, proxies and application.
func (c *contestant) cpu() time.Duration {
	sum := c.agent.cpu() + c.server.cpu()
	for _, p := range c.proxies {
		sum += p.cpu()
	}
	return sum
}

// idle opens many connections, one exchange each, and looks at what the proxies keep for them.
func (b *bench) idle() {
	b.h.progress("measuring memory/idle")
	for _, c := range b.all {
		if len(c.proxies) == 0 {
			continue
		}
		n := min(b.o.idle, (descriptorLimit()-500)/c.perConn)
		before := settle(b.h, c.proxies...)
		_, err := c.agent.run(job{Kind: jobHold, Addr: c.echo, SOCKS: c.socks, Conns: n, Size: 100})
		if err != nil {
			b.h.progress("  %s failed: %v", c.name, err)
			b.rep.remark("memory/idle, %s: %v", c.name, err)
			continue
		}
		after := settle(b.h, c.proxies...)
		if _, err := c.agent.run(job{Kind: jobRelease}); err != nil {
			b.rep.remark("memory/idle, %s: release: %v", c.name, err)
		}
		for i, side := range []string{"client", "server"} {
			limit := 0.0
			if c.name == "isthmus" {
				limit = 16 << 10
			}
			b.rep.fact(fmt.Sprintf("memory/idle/%s/%s", c.name, side), "B/conn", float64(after[i]-before[i])/float64(n), limit)
			if limit != 0 {
				limit = 250
			}
			b.rep.fact(fmt.Sprintf("memory/idle/%s/%s/total(%d)", c.name, side, n), "MiB", float64(after[i])/(1<<20), limit)
		}
	}
}
