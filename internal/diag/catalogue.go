package diag

// Entry is one code of the catalogue.
type Entry struct {
	// Code is the stable name.
	Code Code
	// Summary says in one line what did not work.
	Summary string
	// Cause is the usual cause; an Error normally carries a more exact one.
	Cause string
	// Fix says what to do.
	Fix string
}

// Codes of discovery.
const (
	AccountDenied        Code = "IST1001"
	AssumeRoleDenied     Code = "IST1002"
	AccountThrottled     Code = "IST1003"
	SweepIncomplete      Code = "IST1004"
	AccountUnreachable   Code = "IST1005"
	NoClusterOptedIn     Code = "IST1006"
	NamespaceMissing     Code = "IST1101"
	HostConflict         Code = "IST1103"
	AddressConflict      Code = "IST1104"
	TagInvalid           Code = "IST1105"
	ServiceAccountAbsent Code = "IST1106"
	ServiceWithoutPorts  Code = "IST1107"
	NetworkModePlain     Code = "IST1108"
	ExternalTask         Code = "IST1109"
	DeletionHeld         Code = "IST1201"
	WriteRefused         Code = "IST1202"
	MeshCRDMissing       Code = "IST1203"
)

// Codes of the broker and of identity.
const (
	RequestMalformed        Code = "IST2001"
	RequestTooLarge         Code = "IST2002"
	MethodNotAllowed        Code = "IST2003"
	RegionUnknown           Code = "IST2101"
	KeyNotTemporary         Code = "IST2102"
	ProofExpired            Code = "IST2103"
	ProofReplayed           Code = "IST2104"
	ProofRefused            Code = "IST2105"
	STSUnreachable          Code = "IST2106"
	STSAnswerInvalid        Code = "IST2107"
	CallerNotTaskRole       Code = "IST2108"
	AccountNotConfigured    Code = "IST2201"
	TaskUnknown             Code = "IST2202"
	TaskRoleMismatch        Code = "IST2203"
	TaskNotServing          Code = "IST2204"
	NoServiceAccountTag     Code = "IST2206"
	ServiceAccountMissing   Code = "IST2207"
	RoleNotAnnotated        Code = "IST2208"
	RoleAnnotationForeign   Code = "IST2209"
	DiscoveryUnavailable    Code = "IST2210"
	SourceRateLimited       Code = "IST2301"
	RoleRateLimited         Code = "IST2302"
	BrokerBusy              Code = "IST2303"
	TokenNotIssued          Code = "IST2304"
	GatewayListenerRefused  Code = "IST2401"
	GatewayAddressPending   Code = "IST2402"
	GatewayNamespaceRefused Code = "IST2403"
	WebIdentityOff          Code = "IST2501"
	WebTokenMalformed       Code = "IST2502"
	WebTokenExpired         Code = "IST2503"
	WebTokenForeign         Code = "IST2504"
	WebTokenForged          Code = "IST2505"
	WebTokenSubject         Code = "IST2506"
	IssuerKeysUnknown       Code = "IST2507"
	RoleAmbiguous           Code = "IST2508"
)

// Codes of enrolment, the controller's own configuration and the command line.
const (
	ConfigInvalid        Code = "IST3001"
	ConfigUnreadable     Code = "IST3002"
	KubeUnreachable      Code = "IST3003"
	KubeForbidden        Code = "IST3004"
	ExecFailed           Code = "IST3005"
	PortConflict         Code = "IST3101"
	NetworkModeRefused   Code = "IST3102"
	TooManyContainers    Code = "IST3103"
	TaskDefinitionTooBig Code = "IST3104"
	DependsOnCycle       Code = "IST3105"
	PlatformTooOld       Code = "IST3106"
	ServiceNotFound      Code = "IST3107"
	ClusterNotFound      Code = "IST3108"
	NoTaskRole           Code = "IST3109"
	ForeignProxy         Code = "IST3110"
	NoPortMappings       Code = "IST3111"
	TaskDefinitionBroken Code = "IST3112"
	ProxySettingMissing  Code = "IST3113"
	ClusterNotTagged     Code = "IST3114"
	TaskNotRunning       Code = "IST3115"
	RolloutFailed        Code = "IST3116"
	CaptureRefused       Code = "IST3117"
	ResourcesRefused     Code = "IST3118"
	RolloutUnmanaged     Code = "IST3119"
	CloudUnreachable     Code = "IST3202"
	LabProgramAbsent     Code = "IST3203"
	GatewayNotReady      Code = "IST3204"
	ProxyDumpUnreadable  Code = "IST3205"
	CloudCredentials     Code = "IST3206"
	CloudDenied          Code = "IST3207"
	EKSClusterMissing    Code = "IST3208"
	WhyUnanswered        Code = "IST3230"
)

// Codes of the lab.
const (
	LabNotRunning        Code = "IST4001"
	LabAlreadyRunning    Code = "IST4002"
	LabNamespacesRefused Code = "IST4003"
	LabProgramMissing    Code = "IST4004"
	LabComponentFailed   Code = "IST4005"
	LabPlatform          Code = "IST4007"
	LabTimeout           Code = "IST4008"
	LabExpectation       Code = "IST4009"
)

type section struct{ prefix, title string }

var sections = [...]section{
	{"IST1", "Discovery (IST1xxx)"},
	{"IST2", "Identity, broker and gateway (IST2xxx)"},
	{"IST3", "Enrolment and command line (IST3xxx)"},
	{"IST4", "Lab (IST4xxx)"},
}

// Lookup returns the catalogue's entry of a code.
func Lookup(code Code) (Entry, bool) {
	for _, e := range catalogue {
		if e.Code == code {
			return e, true
		}
	}
	return Entry{}, false
}

// Catalogue returns a copy of all entries, in the order of their codes.
func Catalogue() []Entry {
	return append([]Entry(nil), catalogue[:]...)
}

var catalogue = [...]Entry{
	{AccountDenied, "AWS refused a call that discovery needs",
		"the role of the account lacks a permission of the discovery policy.",
		"attach the policy that `isthmus ecs infra plan -o json` shows to the account's role; nothing is deleted from the mesh meanwhile."},
	{AssumeRoleDenied, "the controller may not assume the account's role",
		"the role's trust policy does not name the controller's own role, or lacks sts:TagSession, which EKS Pod Identity sessions need.",
		"allow sts:AssumeRole and sts:TagSession for the controller's role in the trust policy of the account's role, and check externalId."},
	{AccountThrottled, "AWS throttles discovery in an account",
		"the account's request rate for the ECS API is used up, by discovery or by somebody else.",
		"raise sweepInterval or ask AWS for a higher rate; the mesh keeps the last known state."},
	{SweepIncomplete, "a sweep of an account did not see everything",
		"a page, a cluster or a description was missing from AWS's answers.",
		"nothing, if it happens now and then: the next sweep repairs it and nothing was deleted; otherwise read the controller's log for the call that fails."},
	{AccountUnreachable, "the AWS endpoint of an account does not answer",
		"network, DNS or the endpoint itself is down.",
		"check the controller's way to the regional endpoints (NAT, VPC endpoints, AWS_ENDPOINT_URL); the mesh keeps the last known state."},
	{NoClusterOptedIn, "no ECS cluster of the account is opted in",
		"no cluster carries the tag ecs.solo.io/discovery-enabled=true.",
		"tag the cluster: aws ecs tag-resource --resource-arn CLUSTER_ARN --tags key=ecs.solo.io/discovery-enabled,value=true"},
	{NamespaceMissing, "a cluster's namespace does not exist in Kubernetes",
		"services and tasks of an ECS cluster live in the namespace of the cluster's name, or of the tag ecs.solo.io/namespace.",
		"isthmus ecs namespaces, or: kubectl create namespace NAME && kubectl label namespace NAME istio.io/dataplane-mode=ambient"},
	{HostConflict, "two services claim the same host name",
		"the tag ecs.solo.io/hostname, or equal names, gave one host to services that differ in namespace or ports.",
		"give one of them another host name with the tag ecs.solo.io/hostname; the older service keeps the name."},
	{AddressConflict, "two tasks have the same IP address",
		"peered accounts with overlapping address ranges, or one account configured twice.",
		"remove the duplicate account from the configuration, or renumber one of the networks."},
	{TagInvalid, "a tag's value cannot be used",
		"the value is not a valid name, host or port list.",
		"correct the tag that the message names; the service is served without it."},
	{ServiceAccountAbsent, "a service names no Kubernetes service account",
		"neither task, service nor task definition carries the tag ecs.solo.io/service-account.",
		"isthmus ecs add-service SERVICE --cluster CLUSTER --service-account NAME, or set the tag on the task definition."},
	{ServiceWithoutPorts, "a service has no port",
		"its task definition maps no port and the tag ecs.solo.io/ports is absent, so clients cannot call it.",
		"add a port mapping to the application's container, or set the tag ecs.solo.io/ports, for example http:8080."},
	{NetworkModePlain, "tasks in bridge or host network mode are served without mTLS",
		"such tasks have no address of their own, so no proxy can stand in front of them; and where discovery may not read EC2 hosts, they are not reached at all.",
		"use networkMode awsvpc in the task definition; or, for plain endpoints, set `ec2Hosts: true` in isthmus.yaml and run `isthmus ecs infra apply`, which adds ecs:DescribeContainerInstances and ec2:DescribeInstances to the discovery role."},
	{ExternalTask, "tasks of launch type EXTERNAL are not in the mesh",
		"they run on hosts of one's own (ECS Anywhere), in bridge or host network mode, and AWS tells no address of these hosts.",
		"run them on Fargate or EC2; or write a WorkloadEntry with the address of the host by hand, without the controller's labels."},
	{DeletionHeld, "a change that would remove many workloads is held back",
		"the new picture of the account lacks more workloads than deletionLimitPercent allows at once, which is more often a fault than an intention.",
		"if it is intended, set the annotation isthmus.dev/allow-deletions=ACCOUNT on the ConfigMap isthmus-controller in istio-system, or raise deletionLimitPercent."},
	{WriteRefused, "Kubernetes refused an object of the controller",
		"a webhook, a quota or missing rights.",
		"read the message; for missing rights apply the manifest of `isthmus install --dry-run` again."},
	{MeshCRDMissing, "Kubernetes does not know Istio's ServiceEntry and WorkloadEntry",
		"Istio is not installed in this cluster, or its CRDs were removed.",
		"install Istio in ambient mode (istioctl install --set profile=ambient); the controller waits for it."},

	{RequestMalformed, "the broker cannot read the request",
		"the body is not the JSON object of the broker protocol, or a field has the wrong form.",
		"use the ztunnel image of the same release as the controller."},
	{RequestTooLarge, "the request to the broker is too large",
		"the body exceeds 64 KiB, or the session token exceeds 16 KiB.",
		"use the ztunnel image of the same release as the controller; it sends no more than a few KiB."},
	{MethodNotAllowed, "the broker answers only POST /v1/token",
		"another path or method was requested.",
		"set ISTHMUS_BROKER_ADDRESS to https://HOST:PORT without a path."},
	{RegionUnknown, "the request names an AWS region that is unknown here",
		"the region has not the form of an AWS region, or its partition has no STS host in the broker.",
		"set AWS_REGION of the task to the region it runs in; for other partitions set the controller's --sts-endpoint."},
	{KeyNotTemporary, "the credentials are not those of a role session",
		"the access key id does not start with ASIA; users' long-lived keys are not accepted.",
		"let ztunnel use the task's role: set taskRoleArn in the task definition and give the container no AWS_ACCESS_KEY_ID."},
	{ProofExpired, "the signed request is too old or from the future",
		"the clock of the task and the clock of the broker differ by more than five minutes.",
		"correct the clock; the answer carries the broker's time."},
	{ProofReplayed, "the signed request was used before",
		"each proof buys one token; this one was seen already.",
		"nothing, if it was a network retry: ztunnel signs a fresh request; otherwise find out who copied it."},
	{ProofRefused, "AWS STS did not confirm the signature",
		"the signature does not belong to this request: other audience, other key, other region, expired or foreign credentials.",
		"check that ISTHMUS_AUDIENCE of the task and the broker's audience (the trust domain) are equal, and AWS_REGION."},
	{STSUnreachable, "the broker cannot reach AWS STS",
		"network, DNS or STS itself is down.",
		"check the controller's way to https://sts.REGION.amazonaws.com (NAT or VPC endpoint), or set --sts-endpoint."},
	{STSAnswerInvalid, "AWS STS answered something that is not an identity",
		"a proxy or another server answered in its place, or the answer was cut.",
		"check what stands between the controller and STS; redirects and proxies are not followed on purpose."},
	{CallerNotTaskRole, "the caller is not an ECS task role",
		"the ARN that STS gave is not an assumed role whose session name is a task id.",
		"run ztunnel in the ECS task with a task role; users, root, federated users and EC2 instance roles get no token."},
	{AccountNotConfigured, "the caller's AWS account is not configured",
		"the account is in no entry of platforms.ecs.accounts.",
		"add the account's role to the controller's ConfigMap isthmus-controller."},
	{TaskUnknown, "no such task in an opted-in cluster",
		"the session name is not the id of a task that ECS lists in a cluster with the discovery tag.",
		"tag the cluster ecs.solo.io/discovery-enabled=true; if the task is seconds old, ztunnel retries by itself."},
	{TaskRoleMismatch, "the task does not run with the role that signed",
		"the task's effective role (override, else task definition) is another role: somebody assumed a role with a forged session name.",
		"restrict the role's trust policy to ecs-tasks.amazonaws.com with aws:SourceAccount and aws:SourceArn."},
	{TaskNotServing, "the task is stopping or stopped",
		"desired status is not RUNNING, or the last status is past RUNNING.",
		"nothing: a task that stops gets no new token."},
	{NoServiceAccountTag, "the task names no service account",
		"neither task, service nor task definition carries the tag ecs.solo.io/service-account.",
		"isthmus ecs add-service SERVICE --cluster CLUSTER --service-account NAME"},
	{ServiceAccountMissing, "the service account does not exist",
		"the namespace or the service account that the task's tags name is absent from Kubernetes.",
		"isthmus ecs namespaces, or: kubectl create serviceaccount NAME -n NAMESPACE"},
	{RoleNotAnnotated, "the service account is not open to any role",
		"the service account lacks the annotation ecs.solo.io/role-arn.",
		"kubectl annotate serviceaccount NAME -n NAMESPACE ecs.solo.io/role-arn=ROLE_ARN"},
	{RoleAnnotationForeign, "the service account belongs to another role",
		"its annotation ecs.solo.io/role-arn names another account or role than the one that signed.",
		"correct the annotation, or the task definition's taskRoleArn, or the tag ecs.solo.io/service-account."},
	{DiscoveryUnavailable, "the broker cannot tell tasks apart right now",
		"ECS does not answer, and the task is in no complete sweep yet or the last one is older than the controller's --lookup-max-age.",
		"nothing at the task: ztunnel retries; read the controller's log for the failing ECS call."},
	{SourceRateLimited, "too many requests from one address",
		"the address asked for more tokens than its share.",
		"wait for the time in Retry-After; if many tasks share one NAT address raise --broker-source-rate."},
	{RoleRateLimited, "too many requests for one role",
		"the role's tasks asked for more tokens than its share, usually a crash loop.",
		"stop the crash loop, or raise --broker-role-rate."},
	{BrokerBusy, "the broker is at its limit",
		"more requests are in flight than the limit allows.",
		"nothing: ztunnel retries; add replicas if it lasts."},
	{TokenNotIssued, "Kubernetes did not issue the token",
		"the API server refused or did not answer the TokenRequest, or the per-task Secret could not be made.",
		"check the controller's rights on serviceaccounts/token and secrets (`isthmus install --dry-run`) and the API server."},
	{GatewayListenerRefused, "a listener of the Gateway is not supported",
		"class istio-eastwest serves HBONE (15008) and TLS with mode Passthrough.",
		"correct the listener's protocol, or use another class."},
	{GatewayAddressPending, "the Gateway has no address yet",
		"no load balancer has given its Service an address.",
		"check that the cluster has a load balancer controller: kubectl describe service NAME-istio-eastwest"},
	{GatewayNamespaceRefused, "gateways of class istio-eastwest are served only in the system namespace",
		"the Gateway is in another namespace than istiod; the controller has no rights to run workloads there.",
		"move the Gateway to istio-system."},
	{WebIdentityOff, "web identity tokens of the account are not accepted",
		"webIdentity is not enabled for the account, or the token is of another issuer than the one pinned there.",
		"let ztunnel use the default proof (add-service without --proof), or set webIdentity.enabled and webIdentity.issuer of the account: aws iam get-outbound-web-identity-federation-info"},
	{WebTokenMalformed, "the web identity token has not the form of one of AWS",
		"it is no JWT in compact form, uses another algorithm than RS256 and ES384, or lacks a claim that AWS always gives.",
		"use the ztunnel image of the same release as the controller; if AWS changed its tokens, use the default proof."},
	{WebTokenExpired, "the web identity token is not valid now",
		"it has expired, is from the future, or was given a longer life than five minutes; the clocks of AWS and the broker may differ by one minute.",
		"correct the controller's clock; the answer carries the broker's time."},
	{WebTokenForeign, "the web identity token is meant for somebody else",
		"its audience is not this mesh and the key of this request.",
		"check that ISTHMUS_AUDIENCE of the task and the broker's audience (the trust domain) are equal; otherwise find out who copied the token."},
	{WebTokenForged, "the signature of the web identity token is not valid",
		"no key that the account's issuer publishes made it.",
		"find out who sends it; if AWS has just changed its keys, ztunnel's next attempt succeeds."},
	{WebTokenSubject, "the web identity token is not of a task's role",
		"its subject is not a role of the pinned account, or its claims say that a person, a function or an instance uses the role.",
		"run ztunnel in the ECS task with a task role, and restrict the role's trust policy to ecs-tasks.amazonaws.com."},
	{IssuerKeysUnknown, "the broker does not have the keys of the account's issuer",
		"the issuer cannot be reached, or what it answers is not a key set of AWS.",
		"check the controller's way to the issuer's host (https, port 443); ztunnel retries by itself."},
	{RoleAmbiguous, "the task's role does not say which service account it is",
		"a web identity token names only the role, and other tasks or services of the account have the same role and another service account, or none.",
		"use the default proof (add-service without --proof), or give each service account a task role of its own."},

	{ConfigInvalid, "the configuration is not valid",
		"a field is unknown, missing or has a value that cannot be used.",
		"correct the fields that the message names; docs/reference/configuration.md lists all of them."},
	{ConfigUnreadable, "the configuration cannot be read",
		"the file is absent or not readable.",
		"check --config and its mount."},
	{KubeUnreachable, "the Kubernetes API does not answer",
		"no kubeconfig, a wrong context, or the API server is down.",
		"check KUBECONFIG and `kubectl version`; in the lab: eval \"$(isthmus lab env)\""},
	{KubeForbidden, "Kubernetes refused the call",
		"the user or service account lacks a right.",
		"ask for the right that the message names, or use another context."},
	{ExecFailed, "the command inside the container failed",
		"the container, the program or the connection to it is missing.",
		"check that the pod is Running and the program exists in its image."},
	{PortConflict, "a port of the application is one of the proxy's",
		"ztunnel uses 15000, 15001, 15006, 15008, 15020, 15021, 15053 and 15080, and reserves all from 15000 to 15090.",
		"move the application to another port."},
	{NetworkModeRefused, "the task definition's network mode cannot be enrolled",
		"the proxy needs the task's own address, so networkMode must be awsvpc.",
		"set networkMode awsvpc in the task definition, or leave the service outside: it is served as a plain endpoint."},
	{TooManyContainers, "the task definition has no room for the proxy",
		"a task definition holds at most 10 containers.",
		"merge or remove a container."},
	{TaskDefinitionTooBig, "the task definition is too big",
		"with the proxy it exceeds 64 KiB.",
		"move long environment values to Parameter Store or S3."},
	{DependsOnCycle, "the containers would wait for each other",
		"the proxy's container is in a cycle of dependsOn.",
		"remove the dependency on the application from the proxy's container."},
	{PlatformTooOld, "the Fargate platform version is too old",
		"container dependencies need platform version 1.3.0, exec 1.4.0.",
		"set platformVersion LATEST on the service."},
	{ServiceNotFound, "no such ECS service",
		"the cluster has no ACTIVE service of that name.",
		"check the name: aws ecs list-services --cluster CLUSTER"},
	{ClusterNotFound, "no such ECS cluster",
		"the account and region have no ACTIVE cluster of that name.",
		"check AWS_REGION, the profile and the name: aws ecs list-clusters"},
	{NoTaskRole, "the task definition has no task role",
		"without taskRoleArn a task has no AWS identity, so it can prove none to the broker.",
		"set taskRoleArn in the task definition and annotate the service account with it."},
	{ForeignProxy, "the task definition has a container of the proxy's name",
		"a container named ztunnel exists that isthmus did not add.",
		"rename that container, or remove it if it is an older proxy."},
	{NoPortMappings, "the service has no ports",
		"no container of the task definition has a port mapping, so nothing could be called.",
		"add portMappings to the application container, tag the task definition ecs.solo.io/ports=8080, or pass --client-only."},
	{TaskDefinitionBroken, "the task definition cannot be read",
		"the JSON is not a task definition as the ECS API writes it.",
		"take the output of: aws ecs describe-task-definition --task-definition NAME --query taskDefinition"},
	{ProxySettingMissing, "a setting of the proxy is missing or wrong",
		"enrolment needs the proxy's image, the gateway's address, the mesh root, a namespace and a service account.",
		"wait until the east-west gateway has an address (kubectl get gateway -n istio-system), or give the setting by its flag."},
	{ClusterNotTagged, "the ECS cluster is not opted in to discovery",
		"the cluster lacks the tag ecs.solo.io/discovery-enabled=true.",
		"aws ecs tag-resource --resource-arn CLUSTER-ARN --tags key=ecs.solo.io/discovery-enabled,value=true"},
	{TaskNotRunning, "no running task to use",
		"the service has no task in state RUNNING with ECS Exec enabled.",
		"look at the service's events: aws ecs describe-services --cluster CLUSTER --services SERVICE"},
	{RolloutFailed, "the service did not become stable",
		"the new tasks did not reach a steady state in time.",
		"look at the stopped tasks' stoppedReason and at the log streams of their containers."},
	{CaptureRefused, "the task cannot have this way of capture",
		"redirect needs NET_ADMIN, which Fargate does not give; platform needs the one proxyConfiguration of the task definition.",
		"use --capture socks, which every task can have."},
	{ResourcesRefused, "the task has no room for the proxy",
		"Fargate has fixed pairs of CPU and memory, and the containers may not reserve more than the task has.",
		"raise cpu or memory of the task definition, or lower --cpu or --memory-reservation."},
	{RolloutUnmanaged, "the service is not rolled over by ECS",
		"its deployment controller is CODE_DEPLOY or EXTERNAL, which alone may change its task definition.",
		"enrol the task definition where it is made, with `isthmus ecs render`, and deploy it as usual."},
	{CloudUnreachable, "the AWS API does not answer",
		"no credentials, a wrong region, or no network.",
		"check `aws sts get-caller-identity`; in the lab: eval \"$(isthmus lab env)\""},
	{LabProgramAbsent, "the lab's program is not installed",
		"isthmus-lab is neither beside isthmus nor in PATH.",
		"build it: make lab"},
	{GatewayNotReady, "the east-west gateway has no address",
		"the Gateway does not exist, or its load balancer has no address yet.",
		"apply examples/eastwest-gateway.yaml and wait: kubectl wait -n istio-system gateway/eastwest --for=condition=Programmed"},
	{ProxyDumpUnreadable, "the proxy's state cannot be read",
		"the answer of the proxy's admin port is not a config dump.",
		"check the proxy: kubectl get pods -n istio-system -l app=ztunnel"},
	{CloudCredentials, "AWS does not accept the credentials",
		"there are none, they are wrong, or they have expired.",
		"sign in again, for example with `aws sso login`, or choose another profile with --profile; in the lab: eval \"$(isthmus lab env)\""},
	{CloudDenied, "AWS refuses a call to this user or role",
		"the caller's own policies lack the right that the message names.",
		"ask the account's administrator for it, or use a profile that has it (--profile)."},
	{EKSClusterMissing, "the EKS cluster is not in this account and region",
		"the region, the profile or clusterName is not the one in which the EKS cluster was made.",
		"check `aws eks list-clusters`, then choose with --region, --profile or clusterName; to make one: isthmus eks manifest | eksctl create cluster -f -"},
	{WhyUnanswered, "the proxy cannot say whether the connection would pass",
		"it does not know the source or the destination: a wrong name, a service without that port, or a task that discovery has not seen yet.",
		"look what it knows: isthmus ztunnel-config services, isthmus ztunnel-config workloads"},

	{LabNotRunning, "the lab is not running",
		"no lab was started from this state directory, or it has ended.",
		"isthmus lab up"},
	{LabAlreadyRunning, "a lab is running already",
		"the state directory belongs to a live lab.",
		"isthmus lab down, or set ISTHMUS_LAB_DIR to another directory."},
	{LabNamespacesRefused, "this machine does not allow unprivileged user namespaces",
		"a kernel setting or a security module forbids them.",
		"run the lab as root, or allow them: sysctl kernel.unprivileged_userns_clone=1 (Debian), kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu)."},
	{LabProgramMissing, "a program of the lab is missing",
		"it was not built, or is neither beside the running program nor in PATH.",
		"make build"},
	{LabComponentFailed, "a component of the lab ended or did not start",
		"its own log says why.",
		"isthmus lab logs COMPONENT"},
	{LabPlatform, "the lab needs Linux",
		"it is made of Linux namespaces.",
		"run it in a Linux machine or virtual machine; everything else of the command line works here."},
	{LabTimeout, "the lab waited too long for something",
		"the condition that the message names did not come true in time.",
		"isthmus lab status, then isthmus lab logs COMPONENT"},
	{LabExpectation, "the outcome is not the guide's",
		"a step ran and its result differs from what is expected.",
		"read the difference above; isthmus lab logs shows what the proxies did."},
}
