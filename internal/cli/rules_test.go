package cli

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/isthmus-mesh/isthmus/internal/cli/output"
)

// What a command does to the world, and what it prints. Every command is in one of each, so that a new one must decide.
var (
	writing = []string{"authz-workshop", "config init", "ecs add-service", "ecs cleanup", "ecs deploy", "ecs infra", "ecs infra apply", "ecs infra destroy",
		"ecs namespaces", "ecs register", "ecs remove-service", "install"}
	reading = []string{"check", "config view", "ecs call", "ecs exec", "ecs infra plan", "ecs plan", "ecs render", "ecs status", "eks manifest", "exit-codes", "version", "why",
		"ztunnel-config all", "ztunnel-config certificates", "ztunnel-config policies", "ztunnel-config services", "ztunnel-config why", "ztunnel-config workloads"}
	foreign = []string{"lab"} // another program's, with its own rules

	// structured commands print something that programs read too. The others print text that is a format of its own (a
	// manifest, a task definition, a file), another program's output, or what they did.
	structured = []string{"authz-workshop", "check", "config view", "ecs infra plan", "ecs plan", "ecs status", "version", "why",
		"ztunnel-config certificates", "ztunnel-config policies", "ztunnel-config services", "ztunnel-config why", "ztunnel-config workloads"}
	deleting = []string{"ecs cleanup", "ecs infra destroy"} // what cannot be taken back asks for --yes
)

// leaves calls f for each command that does something.
func leaves(c *cobra.Command, f func(name string, c *cobra.Command)) {
	for _, child := range c.Commands() {
		if child.Hidden || child.Name() == "help" || child.Name() == "completion" {
			continue
		}
		if !child.HasSubCommands() || child.Name() == "infra" {
			f(strings.TrimPrefix(child.CommandPath(), "isthmus "), child)
		}
		leaves(child, f)
	}
}

// Every command keeps to the rules of the command line.
func TestEveryCommandKeepsToTheRules(t *testing.T) {
	leaves(newApp(nil, nil, nil, nil).root(), func(name string, c *cobra.Command) {
		in := func(list []string) bool { return slices.Contains(list, name) }
		n := 0
		for _, list := range [][]string{writing, reading, foreign} {
			if in(list) {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%s is in %d lists of what commands do, want 1", name, n)
		}
		if in(foreign) {
			return
		}
		flag := func(name string) *pflag.Flag { return c.Flags().Lookup(name) }
		if in(writing) && (flag("dry-run") == nil || !strings.Contains(flag("dry-run").Usage, "nothing") && !strings.Contains(flag("dry-run").Usage, "neither") && flag("dry-run").Usage != "the same as plan") {
			t.Errorf("%s writes and has no --dry-run that says so", name)
		}
		if in(reading) && flag("dry-run") != nil {
			t.Errorf("%s has --dry-run and writes nothing", name)
		}
		if in(deleting) && flag("yes") == nil {
			t.Errorf("%s deletes without --yes", name)
		}
		o := flag("output")
		if (o != nil) != in(structured) {
			t.Errorf("%s: has --output: %v, want %v", name, o != nil, in(structured))
		}
		if o != nil {
			choice, ok := o.Value.(*output.Choice)
			if !ok || o.Shorthand != "o" || !slices.Contains(choice.Words(), "json") || !slices.Contains(choice.Words(), "yaml") {
				t.Errorf("%s: -o takes no json and yaml", name)
			}
		}
		if name == "exit-codes" {
			return // a topic
		}
		for _, line := range strings.Split(c.Example, "\n") {
			if !strings.HasPrefix(line, "  ") || !strings.Contains(line, "isthmus") {
				t.Errorf("%s: the example %q does not show the command", name, line)
			}
		}
	})
}

// A mistyped flag of any command is exit code 2 and names the flag that was meant; so does a mistyped word of a choice.
func TestEveryMistakeHasASuggestion(t *testing.T) {
	said := func(args ...string) (int, string) {
		var out, errw bytes.Buffer
		code := Run(args, nil, strings.NewReader(""), &out, &errw)
		return code, errw.String()
	}
	leaves(newApp(nil, nil, nil, nil).root(), func(name string, c *cobra.Command) {
		if slices.Contains(foreign, name) {
			return
		}
		c.InheritedFlags() // merges them into those of the command
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if f.Hidden || len(f.Name) < 4 {
				return
			}
			typo := f.Name[:1] + f.Name[2:3] + f.Name[1:2] + f.Name[3:] // two letters changed places
			if c.Flags().Lookup(typo) != nil {
				return
			}
			code, text := said(append(strings.Fields(name), "--"+typo)...)
			if code != exitUsage || !strings.Contains(text, "did you mean --"+f.Name+"?") {
				t.Errorf("isthmus %s --%s: exit code %d, %q", name, typo, code, text)
			}
			choice, ok := f.Value.(*output.Choice)
			if !ok {
				return
			}
			for _, word := range choice.Words() {
				code, text := said(append(strings.Fields(name), "--"+f.Name, word+"x")...)
				if code != exitUsage || !strings.Contains(text, "did you mean "+word+"?") {
					t.Errorf("isthmus %s --%s %sx: exit code %d, %q", name, f.Name, word, code, text)
				}
			}
		})
	})
	for args, want := range map[string]string{"chekc": "did you mean check?", "ecs staus": "did you mean status?", "ztunnel-config polcies": "did you mean policies?", "install now": `unexpected argument "now"`} {
		if code, text := said(strings.Fields(args)...); code != exitUsage || !strings.Contains(text, want) {
			t.Errorf("isthmus %s: exit code %d, %q, want %q", args, code, text, want)
		}
	}
}

// Every exit code is documented where `isthmus help exit-codes` and the reference tell it.
func TestExitCodesAreDocumented(t *testing.T) {
	topic := exitCodesTopic().Long
	for _, code := range []string{"  0 ", "  1 ", "  2 ", "  3 ", "  4 ", "  130 "} {
		if !strings.Contains(topic, "\n"+code) || !bytes.Contains(Reference(), []byte("\n"+code)) {
			t.Errorf("exit code %s is not documented", strings.TrimSpace(code))
		}
	}
}
