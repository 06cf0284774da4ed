package check

import (
	"fmt"
	"strings"
)

func ecsCluster(f *Facts, v *verdict) {
	if f.ECSErr != nil {
		v.error("the ECS clusters", f.ECSErr)
		return
	}
	for _, c := range f.Clusters {
		switch {
		case c.Status != "ACTIVE":
			state := c.Status
			if state == "" {
				state = "missing"
			}
			v.fail("ECS cluster "+c.Name, "it is "+state+" in region "+f.Names.Region, "isthmus ecs deploy, or correct clusterName and clusters in isthmus.yaml")
		case !c.Tagged:
			v.fail("ECS cluster "+c.Name, "it has no tag ecs.solo.io/discovery-enabled=true", "aws ecs tag-resource --resource-arn "+c.ARN+" --tags key=ecs.solo.io/discovery-enabled,value=true")
		default:
			v.pass("ECS cluster %s is ACTIVE and tagged for discovery", c.Name)
		}
	}
}

func ecsNamespace(f *Facts, v *verdict) {
	for _, c := range f.Clusters {
		switch {
		case c.NamespaceErr != nil:
			v.error("namespace "+c.Name, c.NamespaceErr)
		case !c.Namespace:
			v.fail("namespace "+c.Name, "there is none", "isthmus ecs namespaces")
		case !c.Ambient:
			v.fail("namespace "+c.Name, "it has no label istio.io/dataplane-mode=ambient", "kubectl label namespace "+c.Name+" istio.io/dataplane-mode=ambient --overwrite")
		default:
			v.pass("namespace %s is ambient", c.Name)
		}
	}
}

// each calls judge for every service and passes once with a summary if it never complained.
func each(f *Facts, v *verdict, summary string, judge func(Service) (complained bool)) {
	seen, bad := 0, 0
	for _, c := range f.Clusters {
		for _, s := range c.Services {
			seen++
			if judge(s) {
				bad++
			}
		}
	}
	if bad == 0 && seen > 0 {
		v.pass("%s (%d services)", summary, seen)
	}
}

func ecsService(f *Facts, v *verdict) {
	each(f, v, "every service runs the tasks it wants", func(s Service) bool {
		if s.Running == s.Desired && s.Pending == 0 && s.Rollout == "" {
			return false
		}
		cause := fmt.Sprintf("%d of %d tasks run, %d start", s.Running, s.Desired, s.Pending)
		if s.Rollout != "" {
			cause += "; " + s.Rollout
		}
		v.warn("service "+s.Cluster+"/"+s.Name, cause, fmt.Sprintf("aws ecs describe-services --cluster %s --services %s --query 'services[0].events[:5]'", s.Cluster, s.Name))
		return true
	})
}

func ecsIdentity(f *Facts, v *verdict) {
	each(f, v, "every service account names the role of its tasks", func(s Service) bool {
		if s.AccountErr == nil {
			return false
		}
		v.error("service "+s.Cluster+"/"+s.Name, s.AccountErr)
		return true
	})
}

func ecsEnrolment(f *Facts, v *verdict) {
	each(f, v, "every service is enrolled as add-service would do it now", func(s Service) bool {
		add := s.Add
		if add == "" {
			add = fmt.Sprintf("isthmus ecs add-service %s --cluster %s --wait", s.Name, s.Cluster)
		}
		title := "service " + s.Cluster + "/" + s.Name
		switch {
		case !s.Enrolled:
			v.warn(title, "it is not in the mesh", add)
		case s.DriftErr != nil:
			v.error(title, s.DriftErr)
		case len(s.Drift) > 0:
			v.warn(title, "its proxy differs from what add-service makes:\n"+strings.Join(s.Drift, "\n"), add)
		default:
			return false
		}
		return true
	})
}

func ecsProxy(f *Facts, v *verdict) {
	each(f, v, "the proxy of every enrolled task is healthy", func(s Service) bool {
		bad := false
		for _, t := range s.Tasks {
			if !s.Enrolled || t.Status != "RUNNING" || t.Proxy == "HEALTHY" {
				continue
			}
			bad = true
			cause := "its proxy is " + strings.ToLower(t.Proxy)
			if t.Proxy == "" {
				cause = "it has no proxy: it is older than the service's enrolment"
			}
			v.fail("task "+s.Cluster+"/"+s.Name+" "+t.ID, cause, fmt.Sprintf("isthmus ecs exec %s/%s --task %s -- sh -c 'curl -s --noproxy \"*\" 127.0.0.1:15021/healthz/ready'", s.Cluster, s.Name, t.ID))
		}
		return bad
	})
}

func ecsMesh(f *Facts, v *verdict) {
	each(f, v, "the mesh reaches every enrolled task by HBONE", func(s Service) bool {
		bad := false
		for _, t := range s.Tasks {
			if !s.Enrolled || t.Status != "RUNNING" || t.Protocol == "HBONE" {
				continue
			}
			bad = true
			cause := "the mesh reaches it in the clear (" + t.Protocol + ")"
			if t.Protocol == "" {
				cause = "the mesh does not know it"
			}
			v.fail("task "+s.Cluster+"/"+s.Name+" "+t.ID, cause, "isthmus ecs plan; kubectl get workloadentry -n "+s.Cluster)
		}
		return bad
	})
}
