package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/internal/diag"
	"github.com/isthmus-mesh/isthmus/internal/enrol"
)

// maxDefinitionFile bounds a task definition read from a file.
const maxDefinitionFile = 1 << 20

func (a *app) ecsRender() *cobra.Command {
	var e enrolFlags
	var cluster, file, rootFile string
	c := &cobra.Command{
		Use: "render", Short: "Add the proxy to a task definition, for pipelines", Args: noArgs,
		Long: `Read a task definition as JSON (the input of RegisterTaskDefinition, or the output of DescribeTaskDefinition) and write
the enrolled one. With --gateway-address and --root-cert nothing but the input is needed: no cluster and no AWS.`,
		Example: `  isthmus ecs render -f task.json --cluster ecs-demo-1 > enrolled.json
  aws ecs describe-task-definition --task-definition web --query taskDefinition | isthmus ecs render -f - --cluster ecs-demo-1`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := a.load()
			if err != nil {
				return err
			}
			def, err := a.readDefinition(file)
			if err != nil {
				return err
			}
			var opt enrol.Options
			if e.gateway != "" && rootFile != "" {
				root, err := os.ReadFile(rootFile)
				if err != nil {
					return err
				}
				opt = e.options(cfg, cluster)
				opt.RootPEM = string(root)
			} else {
				k, err := a.kube()
				if err != nil {
					return err
				}
				if opt, err = a.enrolOptions(cmd.Context(), k, cfg, e, cluster); err != nil {
					return err
				}
			}
			out, err := enrol.Enrol(def, opt)
			if err != nil {
				return err
			}
			tags := []any{}
			for _, k := range slices.Sorted(maps.Keys(out.Tags)) {
				tags = append(tags, map[string]any{"key": k, "value": out.Tags[k]})
			}
			out.Task["tags"] = tags
			enc := json.NewEncoder(a.Out)
			enc.SetIndent("", "  ")
			return enc.Encode(out.Task)
		},
	}
	e.register(c)
	c.Flags().StringVarP(&file, "file", "f", "", "task definition; - is standard input (required)")
	c.Flags().StringVar(&cluster, "cluster", "", "ECS cluster, which gives the namespace")
	c.Flags().StringVar(&rootFile, "root-cert", "", "file with the mesh's root certificates (default from the cluster)")
	_ = c.MarkFlagRequired("file")
	return c
}

// readDefinition reads a task definition with its tags inside, as RegisterTaskDefinition takes them.
func (a *app) readDefinition(file string) (enrol.Definition, error) {
	r := a.In
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return enrol.Definition{}, err
		}
		defer f.Close()
		r = f
	}
	var task map[string]any
	if err := json.NewDecoder(io.LimitReader(r, maxDefinitionFile)).Decode(&task); err != nil {
		return enrol.Definition{}, diag.Wrap(diag.TaskDefinitionBroken, fmt.Errorf("read %s: %w", file, err))
	}
	d := enrol.Definition{Task: task, Tags: map[string]string{}}
	if l, ok := task["tags"].([]any); ok {
		for _, t := range l {
			m, _ := t.(map[string]any)
			k, _ := m["key"].(string)
			v, _ := m["value"].(string)
			if k != "" {
				d.Tags[k] = v
			}
		}
		delete(task, "tags")
	}
	return d, nil
}
