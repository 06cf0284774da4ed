package cli

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// Reference returns the reference page of the command line, made from the commands themselves.
func Reference() []byte {
	a := newApp(nil, nil, nil, nil)
	var b bytes.Buffer
	b.WriteString("# The command line\n\nMade from the commands by `UPDATE=1 go test ./internal/cli`; do not edit by hand.\n\n")
	root := a.root()
	root.InitDefaultHelpFlag()
	fmt.Fprintf(&b, "%s\n\n## Flags of every command\n\n", root.Long)
	writeFlags(&b, root.PersistentFlags())
	writeCommands(&b, root)
	b.WriteString("\n## By the name istioctl\n\nA link named `istioctl` to `isthmus` answers `istioctl ecs ...`, `istioctl ztunnel-config ...` and `istioctl version`, and\n" +
		"hands every other command to the next `istioctl` in PATH. Its version ends in `" + guideMark + "`, because scripts written for the\n" +
		"guide look for that to know whether the `ecs` commands are there; nothing else is claimed by it.\n")
	return b.Bytes()
}

func writeCommands(b *bytes.Buffer, parent *cobra.Command) {
	for _, c := range parent.Commands() {
		if c.Hidden || c.Name() == "help" || c.Name() == "completion" {
			continue
		}
		fmt.Fprintf(b, "\n## %s\n\n%s.\n", c.CommandPath(), strings.TrimSuffix(c.Short, "."))
		if c.Long != "" && c.Long != c.Short {
			fmt.Fprintf(b, "\n```text\n%s\n```\n", c.Long)
		}
		if c.Runnable() && !c.HasSubCommands() || c.Name() == "infra" {
			fmt.Fprintf(b, "\nUsage: `%s`\n", strings.TrimSuffix(c.UseLine(), " [flags]"))
		}
		if c.Example != "" {
			fmt.Fprintf(b, "\n```console\n%s\n```\n", strings.ReplaceAll(strings.TrimPrefix(c.Example, "  "), "\n  ", "\n"))
		}
		if c.LocalNonPersistentFlags().HasAvailableFlags() {
			b.WriteString("\n")
			writeFlags(b, c.LocalNonPersistentFlags())
		}
		writeCommands(b, c)
	}
}

func writeFlags(b *bytes.Buffer, flags *pflag.FlagSet) {
	b.WriteString("| Flag | Default | Meaning |\n| --- | --- | --- |\n")
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" || f.Name == "version" {
			return
		}
		name := "`--" + f.Name + "`"
		if f.Shorthand != "" {
			name = "`-" + f.Shorthand + "`, " + name
		}
		def := f.DefValue
		if def != "" {
			def = "`" + def + "`"
		}
		fmt.Fprintf(b, "| %s | %s | %s |\n", name, def, strings.ReplaceAll(f.Usage, "|", "\\|"))
	})
}
