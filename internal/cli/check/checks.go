package check

import (
	"fmt"
	"strings"
	"time"
)

// Bounds of what is still well.
const (
	rootWarning = 30 * 24 * time.Hour // before the mesh root ends
	statusAge   = 3 * time.Minute     // the leader refreshes its status every minute
)

// Checks returns the table of all checks, in the order in which they run.
func Checks() []Check {
	return []Check{
		{ID: "aws-credentials", Category: "aws", Looks: "AWS credentials", Why: "Every other look at AWS needs them.", run: awsCredentials},
		{ID: "aws-account", Category: "aws", Looks: "the account is the configured one", Why: "A wrong profile would set up, or clean up, somebody else's account.", needs: []string{"aws-credentials"}, run: awsAccount},
		{ID: "aws-eks-cluster", Category: "aws", Looks: "the EKS cluster", Why: "Its VPC is where the ECS tasks go, and its Pod Identity is how the controller gets its role.", needs: []string{"aws-credentials"}, run: awsEKS},
		{ID: "aws-infrastructure", Category: "aws", Looks: "roles, security group and log group", Why: "A role that lacks a right, or a trust policy that lacks sts:TagSession, stops discovery or the tasks' identity; one with more rights than it needs lends them to every task, or to whoever takes over the controller. Trust and inline policies, further policies, and the role of the controller's pod identity are compared with what `isthmus ecs infra apply` makes.", needs: []string{"aws-eks-cluster"}, run: awsInfra},
		{ID: "aws-security-group", Category: "aws", Looks: "the security group of the tasks admits the mesh only", Why: "An application's port that is open beside 15008 is reached in the clear, past identity and policy.", needs: []string{"aws-eks-cluster"}, run: awsGroup},
		{ID: "kubernetes-api", Category: "kubernetes", Looks: "the Kubernetes API", Why: "Everything the mesh knows is kept there.", run: kubeAPI},
		{ID: "kubernetes-kinds", Category: "kubernetes", Looks: "the kinds of Istio and the Gateway API", Why: "Discovery writes ServiceEntry and WorkloadEntry; the east-west gateway is a Gateway.", needs: []string{"kubernetes-api"}, run: kubeKinds},
		{ID: "istio-istiod", Category: "istio", Looks: "istiod", Why: "It serves the mesh's configuration and signs its certificates.", needs: []string{"kubernetes-api"}, run: istiod},
		{ID: "istio-ztunnel", Category: "istio", Looks: "ztunnel on the nodes", Why: "Pods reach ECS tasks through the ztunnel of their node.", needs: []string{"kubernetes-api"}, run: ztunnel},
		{ID: "istio-network", Category: "istio", Looks: "the mesh network", Why: "Tasks of another network than istiod's own would be reached through a gateway that does not exist.", needs: []string{"kubernetes-api"}, run: network},
		{ID: "istio-root", Category: "istio", Looks: "the mesh's root certificate", Why: "It is in every enrolled task definition; when it changes, services must be enrolled again.", needs: []string{"istio-istiod"}, run: root},
		{ID: "isthmus-controller", Category: "isthmus", Looks: "isthmus-controller", Why: "Without it no task is discovered and none gets its identity.", needs: []string{"kubernetes-api"}, run: controller},
		{ID: "isthmus-discovery", Category: "isthmus", Looks: "discovery of every account", Why: "An account that cannot be read keeps what it had, and nothing new of it appears.", needs: []string{"isthmus-controller"}, run: discovery},
		{ID: "isthmus-problems", Category: "isthmus", Looks: "what discovery asks to put right", Why: "Things that exist in ECS and cannot be in the mesh as they are.", needs: []string{"isthmus-controller"}, run: problems},
		{ID: "isthmus-gateway", Category: "isthmus", Looks: "the east-west gateway", Why: "ECS tasks reach istiod and the identity broker through it.", needs: []string{"kubernetes-kinds"}, run: gateway},
		{ID: "ecs-cluster", Category: "ecs", Looks: "the ECS clusters", Why: "Those of the configuration exist and are tagged for discovery.", needs: []string{"aws-credentials"}, run: ecsCluster},
		{ID: "ecs-namespace", Category: "ecs", Looks: "the namespaces of the ECS clusters", Why: "The objects of a cluster are written to its namespace, and its label makes it ambient.", needs: []string{"ecs-cluster", "kubernetes-api"}, run: ecsNamespace},
		{ID: "ecs-service", Category: "ecs", Looks: "the ECS services run", Why: "A roll-over that is stuck keeps old tasks.", needs: []string{"ecs-cluster"}, run: ecsService},
		{ID: "ecs-identity", Category: "ecs", Looks: "the identity of the services", Why: "The broker gives a task the identity of its service account only if the account names the task's role.", needs: []string{"ecs-namespace"}, run: ecsIdentity},
		{ID: "ecs-enrolment", Category: "ecs", Looks: "the services are in the mesh as add-service would put them", Why: "A proxy that was told another gateway or root certificate cannot start again, one of another image has not its mistakes mended, and one of another cluster's namespace has the wrong identity. What `isthmus ecs render` would make now is compared with what runs: image, gateway address, root certificate, network and namespace. Choices that were made for a service (capture, proxy variables, resources, service account, a namespace of its own) are kept, and the command in the fix repeats them.", needs: []string{"ecs-cluster"}, run: ecsEnrolment},
		{ID: "ecs-proxy", Category: "ecs", Looks: "the proxies of the tasks", Why: "A task is reached by mTLS only while its proxy is healthy.", needs: []string{"ecs-cluster"}, run: ecsProxy},
		{ID: "ecs-mesh", Category: "ecs", Looks: "the tasks as the mesh sees them", Why: "What a node's ztunnel does not know, or knows without HBONE, is not reached by mTLS.", needs: []string{"ecs-cluster", "istio-ztunnel"}, run: ecsMesh},
	}
}

func awsCredentials(f *Facts, v *verdict) {
	if f.AWS.Err != nil {
		v.error("AWS credentials", f.AWS.Err)
		return
	}
	v.pass("credentials for account %s (%s)", f.AWS.Account, f.AWS.ARN)
}

func awsAccount(f *Facts, v *verdict) {
	if f.Names.Account != "" && f.Names.Account != f.AWS.Account {
		v.fail("the account is "+f.AWS.Account, "the configuration says "+f.Names.Account, "choose the profile of that account with --profile, or correct account in isthmus.yaml")
		return
	}
	v.pass("account %s, region %s", f.AWS.Account, f.Names.Region)
}

func awsEKS(f *Facts, v *verdict) {
	switch {
	case f.AWS.EKSErr != nil:
		v.error("EKS cluster "+f.Names.EKSCluster, f.AWS.EKSErr)
	case f.AWS.EKS != "ACTIVE":
		v.fail("EKS cluster "+f.Names.EKSCluster, "it is "+f.AWS.EKS, "aws eks wait cluster-active --name "+f.Names.EKSCluster)
	default:
		v.pass("EKS cluster %s is ACTIVE", f.Names.EKSCluster)
	}
}

func awsInfra(f *Facts, v *verdict) {
	switch {
	case f.AWS.InfraErr != nil:
		v.error("roles, security group and log group", f.AWS.InfraErr)
	case len(f.AWS.Infra) > 0:
		v.fail("roles, security group and log group", strings.Join(f.AWS.Infra, "\n"), "isthmus ecs infra apply")
	default:
		v.pass("roles, security group and log group are as they should be")
	}
	if len(f.AWS.Rights) > 0 {
		v.warn("roles that others made have more rights than the mesh needs", strings.Join(f.AWS.Rights, "\n"),
			"aws iam detach-role-policy --role-name ROLE --policy-arn ARN (delete-role-policy for one without an ARN), or list the policy under keep in isthmus.yaml")
	}
}

func awsGroup(f *Facts, v *verdict) {
	title := "security group " + f.AWS.Group
	switch {
	case f.AWS.OpenErr != nil:
		v.error(title, f.AWS.OpenErr)
	case len(f.AWS.Open) > 0:
		v.warn(title, "beside the mesh's port it admits what reaches applications in the clear, without identity and policy:\n"+strings.Join(f.AWS.Open, "\n"),
			"isthmus ecs infra apply closes them; what a load balancer needs, list under keep in isthmus.yaml in these words")
	default:
		v.pass("%s admits nothing but the mesh", title)
	}
}

func kubeAPI(f *Facts, v *verdict) {
	if f.Kube.Err != nil {
		v.error("the Kubernetes API", f.Kube.Err)
		return
	}
	v.pass("Kubernetes API %s answers", f.Kube.Server)
}

func kubeKinds(f *Facts, v *verdict) {
	if len(f.Kube.Missing) == 0 {
		v.pass("the kinds of Istio and the Gateway API are served")
		return
	}
	fix := "install Istio with the ambient profile"
	if strings.Contains(strings.Join(f.Kube.Missing, " "), "gateway.networking.k8s.io") {
		fix = "kubectl apply --server-side -f https://github.com/kubernetes-sigs/gateway-api/releases/download/v1.4.0/standard-install.yaml"
	}
	v.fail("the kinds of Istio and the Gateway API", "not served: "+strings.Join(f.Kube.Missing, ", "), fix)
}

func pods(v *verdict, title string, p Pods, namespace, selector, none string) {
	logs := fmt.Sprintf("kubectl describe pods -n %s -l %s", namespace, selector)
	switch {
	case p.Err != nil:
		v.error(title, p.Err)
	case p.Total == 0:
		v.fail(title, "there is no pod with "+selector+" in "+namespace, none)
	case p.Ready == 0:
		v.fail(title, fmt.Sprintf("none of its %d pods is ready", p.Total), logs)
	case p.Ready < p.Total:
		v.warn(title, fmt.Sprintf("%d of its %d pods are ready", p.Ready, p.Total), logs)
	default:
		v.pass("%s: %d of %d pods ready", title, p.Ready, p.Total)
	}
}

func istiod(f *Facts, v *verdict) {
	pods(v, "istiod", f.Istio.Istiod, "istio-system", "app=istiod", "istioctl install --set profile=ambient")
}

func ztunnel(f *Facts, v *verdict) {
	pods(v, "ztunnel", f.Istio.Ztunnel, "istio-system", "app=ztunnel", "istioctl install --set profile=ambient")
}

func network(f *Facts, v *verdict) {
	fix := "kubectl label namespace istio-system topology.istio.io/network=" + f.Names.Network + " --overwrite"
	switch {
	case f.Istio.NetworkErr != nil:
		v.error("the mesh network", f.Istio.NetworkErr)
	case f.Istio.Network == "":
		v.fail("the mesh network", "namespace istio-system has no label topology.istio.io/network", fix)
	case f.Istio.Network != f.Names.Network:
		v.fail("the mesh network", fmt.Sprintf("istio-system is in network %q, the tasks are put into %q", f.Istio.Network, f.Names.Network), fix)
	default:
		v.pass("istio-system is in network %s", f.Istio.Network)
	}
}

func root(f *Facts, v *verdict) {
	switch left := f.Istio.RootNotAfter.Sub(f.Now); {
	case f.Istio.RootErr != nil:
		v.error("the mesh's root certificate", f.Istio.RootErr)
	case left <= 0:
		v.fail("the mesh's root certificate", "it ended on "+f.Istio.RootNotAfter.UTC().Format(time.DateOnly), "rotate the root of istiod's CA, then isthmus ecs add-service --all --wait")
	case left < rootWarning:
		v.warn("the mesh's root certificate", "it ends on "+f.Istio.RootNotAfter.UTC().Format(time.DateOnly), "rotate the root of istiod's CA, then isthmus ecs add-service --all --wait")
	default:
		v.pass("the mesh's root certificate is valid until %s", f.Istio.RootNotAfter.UTC().Format(time.DateOnly))
	}
}

func controller(f *Facts, v *verdict) {
	pods(v, "isthmus-controller", f.Controller.Pods, "istio-system", "app=isthmus-controller", "isthmus install")
}

func discovery(f *Facts, v *verdict) {
	s := f.Controller.Status
	logs := "kubectl logs -n istio-system -l app=isthmus-controller --tail=50"
	switch {
	case f.Controller.StatusErr != nil:
		v.error("discovery", f.Controller.StatusErr)
		return
	case s == nil:
		v.fail("discovery", "the controller has written no status yet", logs)
		return
	case f.Now.Sub(s.Updated) > statusAge:
		v.fail("discovery", "the controller's status is of "+s.Updated.UTC().Format(time.RFC3339)+": there is no leader", logs)
		return
	}
	for _, a := range s.Accounts {
		if a.Complete {
			v.pass("account %s in %s: %d clusters, %d services, %d tasks", a.Account, a.Region, len(a.Clusters), a.Services, a.Tasks)
			continue
		}
		v.fail(fmt.Sprintf("account %s in %s", a.Account, a.Region), a.Error, a.Fix)
		v.results[len(v.results)-1].Code = a.Code
	}
}

func problems(f *Facts, v *verdict) {
	s := f.Controller.Status
	if s == nil {
		return // isthmus-discovery tells
	}
	told := map[string]bool{}
	for _, a := range s.Accounts {
		told[a.Account+" in "+a.Region] = true
	}
	count := 0
	for _, p := range s.Problems {
		if told[p.Object] {
			continue
		}
		count++
		v.warn(p.Object, p.Cause, p.Fix)
		v.results[len(v.results)-1].Code = p.Code
	}
	for _, h := range s.Held {
		count++
		v.warn(h.Object+" is kept", h.Reason, "isthmus ecs plan, then confirm if it should go")
	}
	if count == 0 {
		v.pass("discovery has nothing to complain about")
	}
}

func gateway(f *Facts, v *verdict) {
	if f.Controller.GatewayErr != nil {
		v.error("east-west gateway "+f.Names.Gateway, f.Controller.GatewayErr)
		return
	}
	v.pass("east-west gateway %s is at %s", f.Names.Gateway, f.Controller.Gateway)
}
