package enrol

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/isthmus-mesh/isthmus/internal/diag"
)

func app(d Definition) map[string]any {
	return d.Task["containerDefinitions"].([]any)[0].(map[string]any)
}

func addContainer(d *Definition, c map[string]any) {
	d.Task["containerDefinitions"] = append(list(d.Task["containerDefinitions"]), c)
}

func waitsFor(c map[string]any, other string) {
	c["dependsOn"] = append(list(c["dependsOn"]), map[string]any{"containerName": other, "condition": "START"})
}

func mapPorts(c map[string]any, ports ...any) {
	var all []any
	for _, p := range ports {
		key := "containerPort"
		if _, text := p.(string); text {
			key = "containerPortRange"
		}
		all = append(all, map[string]any{key: p})
	}
	c["portMappings"] = all
}

func environ(c map[string]any, pairs ...string) {
	var all []any
	for i := 0; i < len(pairs); i += 2 {
		all = append(all, map[string]any{"name": pairs[i], "value": pairs[i+1]})
	}
	c["environment"] = all
}

// TestTrap13Refusals is what injection must refuse rather than let ECS, or the running task, find out.
func TestTrap13Refusals(t *testing.T) {
	ec2 := func(d *Definition) { d.Task["requiresCompatibilities"] = []any{"EC2"} }
	for _, c := range []struct {
		name   string
		change func(*Definition, *Options)
		want   diag.Code // "" means that it is accepted
		fix    string    // part of the fix
	}{
		{"as it is", func(*Definition, *Options) {}, "", ""},
		{"bridge mode", func(d *Definition, _ *Options) { d.Task["networkMode"] = "bridge" }, diag.NetworkModeRefused, "networkMode awsvpc"},
		{"host mode", func(d *Definition, _ *Options) { d.Task["networkMode"] = "host" }, diag.NetworkModeRefused, "networkMode awsvpc"},
		{"no mode, which is bridge", func(d *Definition, _ *Options) { delete(d.Task, "networkMode") }, diag.NetworkModeRefused, "networkMode awsvpc"},
		{"redirect in bridge mode", func(d *Definition, o *Options) { ec2(d); d.Task["networkMode"], o.Capture = "bridge", CaptureRedirect }, diag.NetworkModeRefused, "awsvpc"},
		{"redirect in host mode", func(d *Definition, o *Options) { ec2(d); d.Task["networkMode"], o.Capture = "host", CaptureRedirect }, diag.NetworkModeRefused, "awsvpc"},
		{"redirect on Fargate", func(_ *Definition, o *Options) { o.Capture = CaptureRedirect }, diag.CaptureRefused, "--capture socks or --capture platform"},
		{"redirect, Fargate by the service", func(d *Definition, o *Options) { ec2(d); o.Capture, o.LaunchType = CaptureRedirect, "FARGATE" }, diag.CaptureRefused, "socks"},
		{"redirect on EC2", func(d *Definition, o *Options) { ec2(d); o.Capture, o.LaunchType = CaptureRedirect, "EC2" }, "", ""},
		{"redirect on Managed Instances", func(d *Definition, o *Options) {
			d.Task["requiresCompatibilities"], o.Capture, o.LaunchType = []any{"MANAGED_INSTANCES"}, CaptureRedirect, "MANAGED_INSTANCES"
		}, "", ""},
		{"platform beside another", func(d *Definition, o *Options) {
			d.Task["proxyConfiguration"], o.Capture = map[string]any{"containerName": "envoy"}, CapturePlatform
		}, diag.CaptureRefused, "remove it"},
		{"platform without ports", func(d *Definition, o *Options) {
			delete(app(*d), "portMappings")
			o.Capture, o.ClientOnly = CapturePlatform, true
		}, diag.CaptureRefused, "socks"},
		{"no task role", func(d *Definition, _ *Options) { delete(d.Task, "taskRoleArn") }, diag.NoTaskRole, "taskRoleArn"},
		{"HBONE's port", func(d *Definition, _ *Options) { mapPorts(app(*d), 15008.0) }, diag.PortConflict, "another port"},
		{"first port", func(d *Definition, _ *Options) { mapPorts(app(*d), 15000.0) }, diag.PortConflict, "another port"},
		{"last port", func(d *Definition, _ *Options) { mapPorts(app(*d), 15090.0) }, diag.PortConflict, "another port"},
		{"before them", func(d *Definition, _ *Options) { mapPorts(app(*d), 14999.0) }, "", ""},
		{"after them", func(d *Definition, _ *Options) { mapPorts(app(*d), 15091.0) }, "", ""},
		{"a range over them", func(d *Definition, _ *Options) { mapPorts(app(*d), "14000-16000") }, diag.PortConflict, "another port"},
		{"a range beside them", func(d *Definition, _ *Options) { mapPorts(app(*d), "16000-16100") }, "", ""},
		{"no ports", func(d *Definition, _ *Options) { delete(app(*d), "portMappings") }, diag.NoPortMappings, "--client-only"},
		{"foreign ztunnel", func(d *Definition, _ *Options) { app(*d)["name"] = "ztunnel" }, diag.ForeignProxy, "rename"},
		{"ten containers", func(d *Definition, _ *Options) {
			for i := range 9 {
				addContainer(d, map[string]any{"name": fmt.Sprint("c", i)})
			}
		}, diag.TooManyContainers, "remove a container"},
		{"nine containers", func(d *Definition, _ *Options) {
			for i := range 8 {
				addContainer(d, map[string]any{"name": fmt.Sprint("c", i)})
			}
		}, "", ""},
		{"more than 64 KiB", func(_ *Definition, o *Options) { o.RootPEM = strings.Repeat("x", 32<<10) }, diag.TaskDefinitionTooBig, "Parameter Store"},
		{"two that wait for each other", func(d *Definition, _ *Options) {
			addContainer(d, map[string]any{"name": "other"})
			waitsFor(app(*d), "other")
			waitsFor(d.Task["containerDefinitions"].([]any)[1].(map[string]any), "echo-service")
		}, diag.DependsOnCycle, "dependency"},
		{"one that waits for itself", func(d *Definition, _ *Options) { waitsFor(app(*d), "echo-service") }, diag.DependsOnCycle, "dependency"},
		{"platform 1.2.0", func(_ *Definition, o *Options) { o.LaunchType, o.PlatformVersion = "FARGATE", "1.2.0" }, diag.PlatformTooOld, "LATEST"},
		{"platform 1.3.0", func(_ *Definition, o *Options) { o.LaunchType, o.PlatformVersion = "FARGATE", "1.3.0" }, "", ""},
		{"platform LATEST", func(_ *Definition, o *Options) { o.LaunchType, o.PlatformVersion = "FARGATE", "LATEST" }, "", ""},
		{"no containers", func(d *Definition, _ *Options) { delete(d.Task, "containerDefinitions") }, diag.TaskDefinitionBroken, "describe-task-definition"},
		{"no image", func(_ *Definition, o *Options) { o.Image = "" }, diag.ProxySettingMissing, "flag"},
		{"bad capture", func(_ *Definition, o *Options) { o.Capture = "magic" }, diag.ProxySettingMissing, ""},
		{"bad proxy variables", func(_ *Definition, o *Options) { o.ProxyEnv = "magic" }, diag.ProxySettingMissing, ""},
		{"a pair that Fargate has not", func(d *Definition, _ *Options) { d.Task["cpu"], d.Task["memory"] = "512", "512" }, diag.ResourcesRefused, "from 1024 to 4096"},
		{"1.5 GB of a quarter CPU", func(d *Definition, _ *Options) { d.Task["memory"] = "1536" }, diag.ResourcesRefused, "512"},
		{"sizes with units", func(d *Definition, _ *Options) { d.Task["cpu"], d.Task["memory"] = ".5 vCPU", "1 GB" }, "", ""},
		{"no size", func(d *Definition, _ *Options) { delete(d.Task, "cpu") }, diag.ResourcesRefused, ""},
		{"no size on EC2", func(d *Definition, _ *Options) { ec2(d); delete(d.Task, "cpu"); delete(d.Task, "memory") }, "", ""},
		{"no memory left", func(d *Definition, _ *Options) { app(*d)["memory"] = 512.0 }, diag.ResourcesRefused, "--memory-reservation"},
		{"a reservation that leaves some", func(d *Definition, _ *Options) { app(*d)["memory"], app(*d)["memoryReservation"] = 512.0, 448.0 }, "", ""},
		{"no cpu left", func(d *Definition, o *Options) { app(*d)["cpu"], o.CPU = 256.0, 1 }, diag.ResourcesRefused, "--cpu"},
		{"a stop longer than Fargate's", func(_ *Definition, o *Options) { o.StopTimeout = 121 }, diag.ResourcesRefused, "--stop-timeout 120s"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, o := definition(t, echo), options()
			c.change(&d, &o)
			_, err := Enrol(d, o)
			if diag.CodeOf(err) != c.want || (err == nil) != (c.want == "") {
				t.Fatalf("Enrol = %v, want code %q", err, c.want)
			}
			var text strings.Builder
			diag.Print(&text, "isthmus", err)
			if err != nil && !strings.Contains(text.String(), c.fix) {
				t.Errorf("the fix does not say %q:\n%s", c.fix, text.String())
			}
		})
	}
}

// TestTrap13Inverse enrols many kinds of definition in every way: again makes no difference, and Remove gives back what
// was there, tags and variables included.
func TestTrap13Inverse(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Definition)
	}{
		{"as it is", func(*Definition) {}},
		{"the guide's tag", func(d *Definition) { d.Tags[TagServiceAccount] = "ecs-demo-sa-local" }},
		{"tags of another identity", func(d *Definition) { d.Tags[TagServiceAccount], d.Tags[TagNamespace] = "x", "y" }},
		{"dependencies of its own", func(d *Definition) {
			addContainer(d, map[string]any{"name": "init", "essential": false})
			waitsFor(app(*d), "init")
		}},
		{"a log router", func(d *Definition) {
			addContainer(d, map[string]any{"name": "router", "firelensConfiguration": map[string]any{"type": "fluentbit"}})
		}},
		{"proxy variables", func(d *Definition) { environ(app(*d), "ALL_PROXY", "socks5h://127.0.0.1:15080", "A", "b") }},
		{"proxy variables elsewhere", func(d *Definition) { environ(app(*d), "https_proxy", "http://proxy.corp:3128") }},
		{"exceptions of its own", func(d *Definition) { environ(app(*d), "HTTP_PROXY", "http://localhost:15080", "no_proxy", "x") }},
		{"volumes", func(d *Definition) {
			d.Task["volumes"] = []any{map[string]any{"name": "v", "efsVolumeConfiguration": map[string]any{"z": 1.0}}}
		}},
	} {
		for _, capture := range Captures() {
			for _, vars := range ProxyEnvs() {
				t.Run(fmt.Sprint(c.name, "/", capture, "/", vars), func(t *testing.T) {
					in, o := definition(t, echo), options()
					in.Task["requiresCompatibilities"] = []any{"EC2"}
					c.change(&in)
					o.Capture, o.ProxyEnv = capture, vars
					once := enrolled(t, in, o)
					if twice := enrolled(t, once, o); !Equal(once, twice) {
						t.Errorf("enrolling twice differs:\n%s", strings.Join(Diff(once, twice), "\n"))
					}
					other := o
					other.Namespace, other.Capture = "ecs-demo-2", CaptureSOCKS // as an enrolled revision of another cluster
					if back := enrolled(t, enrolled(t, in, other), o); !Equal(once, back) {
						t.Errorf("enrolling over another cluster's differs:\n%s", strings.Join(Diff(once, back), "\n"))
					}
					out, err := Remove(once)
					if err != nil {
						t.Fatal(err)
					}
					if diff := cmp.Diff(in.Tags, out.Tags); diff != "" || !Equal(in, out) {
						t.Errorf("Remove(Enrol(d)) differs from d:\n%s\n%s", diff, strings.Join(Diff(in, out), "\n"))
					}
				})
			}
		}
	}
}

// TestTrap14CredentialsStayDirect checks that no enrolled container with proxy variables would ask the proxy for the
// credentials of its task.
func TestTrap14CredentialsStayDirect(t *testing.T) {
	for _, c := range []struct {
		name     string
		env      []string
		vars     ProxyEnv
		capture  Capture
		noProxy  string // of NO_PROXY afterwards
		allProxy string
	}{
		{"no proxy variables", []string{"A", "b"}, ProxyEnvNone, CaptureSOCKS, "", ""},
		{"the guide's", []string{"ALL_PROXY", "socks5h://127.0.0.1:15080"}, ProxyEnvNone, CaptureSOCKS, NoProxy, "socks5h://127.0.0.1:15080"},
		{"lower case", []string{"all_proxy", "socks5h://localhost:15080"}, ProxyEnvNone, CaptureSOCKS, NoProxy, ""},
		{"HTTP", []string{"HTTPS_PROXY", "http://127.0.0.1:15080"}, ProxyEnvNone, CaptureSOCKS, NoProxy, ""},
		{"another proxy", []string{"HTTPS_PROXY", "http://proxy.corp:3128"}, ProxyEnvNone, CaptureSOCKS, "", ""},
		{"exceptions of its own", []string{"ALL_PROXY", "socks5h://127.0.0.1:15080", "NO_PROXY", "169.254.170.2"}, ProxyEnvNone, CaptureSOCKS, "169.254.170.2", "socks5h://127.0.0.1:15080"},
		{"asked for all", nil, ProxyEnvAll, CaptureSOCKS, NoProxy, "socks5h://127.0.0.1:15080"},
		{"asked for http", nil, ProxyEnvHTTP, CaptureSOCKS, NoProxy, ""},
		{"platform", []string{"ALL_PROXY", "socks5h://127.0.0.1:15080"}, ProxyEnvNone, CapturePlatform, NoProxy, "socks5h://127.0.0.1:15080"},
		{"no capture", nil, ProxyEnvAll, CaptureNone, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, o := definition(t, echo), options()
			if c.env != nil {
				environ(app(d), c.env...)
			}
			o.ProxyEnv, o.Capture = c.vars, c.capture
			env := environment(app(enrolled(t, d, o)))
			if env["NO_PROXY"] != c.noProxy || env["ALL_PROXY"] != c.allProxy {
				t.Errorf("environment = %v, want NO_PROXY %q and ALL_PROXY %q", env, c.noProxy, c.allProxy)
			}
			if c.noProxy == NoProxy && (env["no_proxy"] != NoProxy || !strings.Contains(NoProxy, "169.254.170.2")) {
				t.Errorf("no_proxy = %q, want the same as NO_PROXY", env["no_proxy"])
			}
		})
	}
}

// TestCaptureRedirect is what only this capture needs: root with the one capability, and the setting.
func TestCaptureRedirect(t *testing.T) {
	d, o := definition(t, echo), options()
	d.Task["requiresCompatibilities"], o.Capture = []any{"EC2"}, CaptureRedirect
	proxy := enrolled(t, d, o).Task["containerDefinitions"].([]any)[1].(map[string]any)
	want := map[string]any{"capabilities": map[string]any{"drop": []any{"ALL"}, "add": []any{"NET_ADMIN"}}}
	if diff := cmp.Diff(want, proxy["linuxParameters"]); diff != "" || proxy["user"] != "0:0" || environment(proxy)["ISTHMUS_REDIRECT"] != "true" {
		t.Errorf("proxy = %v\n%s", proxy, diff)
	}
}
