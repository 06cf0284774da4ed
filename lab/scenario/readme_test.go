package scenario

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// Commands of the README that the runner itself carries out: it starts the lab, takes its environment and ends it.
var byRunner = map[string]bool{"isthmus lab up": true, `eval "$(isthmus lab env)"`: true, "isthmus lab down": true}

var consoleBlock = regexp.MustCompile("(?s)```console\n(.*?)```")

// Every command that the README shows is one that the demo runs, word for word but for flags that make it repeatable.
func TestReadmeCommandsAreRun(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	s, err := Load("2")
	if err != nil {
		t.Fatal(err)
	}
	var run []string
	for _, st := range s.Steps {
		run = append(run, st.Run)
	}
	all := normal(strings.Join(run, "\n"))
	shown := 0
	for _, block := range consoleBlock.FindAllSubmatch(readme, -1) {
		for line := range strings.Lines(string(block[1])) {
			command, _, _ := strings.Cut(line, "  #")
			command = strings.TrimSpace(command)
			if command == "" {
				continue
			}
			shown++
			if !byRunner[command] && !strings.Contains(all, normal(command)) {
				t.Errorf("README shows %q, which no step of scenario 2 runs", command)
			}
		}
	}
	if shown < 10 {
		t.Errorf("found %d commands in the README, want its walk through the guide", shown)
	}
}

// normal drops what does not change what a command does to the reader.
func normal(s string) string {
	for _, flag := range []string{" --overwrite", " --force", " -sS", " -s"} {
		s = strings.ReplaceAll(s, flag, "")
	}
	return s
}
