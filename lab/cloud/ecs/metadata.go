package ecs

import (
	"encoding/json"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/lab/cloud/awsserver"
	"github.com/isthmus-mesh/isthmus/lab/cloud/iam"
)

// addrOf returns the address of a task's interface.
func (s *Service) addrOf(t *task) netip.Addr {
	if t.eni == nil {
		return netip.Addr{}
	}
	a, err := netip.ParseAddr(t.eni.addr)
	if err != nil {
		return netip.Addr{}
	}
	return a
}

func (r *run) releaseAddr() {
	if a := r.s.addrOf(r.t); a.IsValid() {
		r.s.cfg.Network.Release(a)
	}
}

// renewSession gives the task fresh credentials of its role; the session carries the task's id as its name.
func (s *Service) renewSession(t *task) error {
	session, err := s.cfg.Roles.AssumeForService(iam.ServiceSession{RoleARN: t.roleARN(), Service: "ecs-tasks.amazonaws.com",
		SessionName: t.id, SourceARN: t.arn, Duration: sessionLife})
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t.session = session
	if t.credentialID == "" {
		t.credentialID = awsserver.UUID()
		s.creds[t.credentialID] = t
	}
	return nil
}

// forgetTask ends what a stopped task had: its credentials and its metadata.
func (s *Service) forgetTask(t *task) {
	s.mu.Lock()
	delete(s.creds, t.credentialID)
	for _, c := range t.containers {
		delete(s.metadata, c.metadataID)
	}
	key := t.session.Identity.AccessKeyID
	s.mu.Unlock()
	if key != "" {
		s.cfg.Roles.Revoke(key)
	}
}

// MetadataHandler answers what containers ask at 169.254.170.2: credentials of the task's role and metadata version 4
// (version 3 paths give the same documents).
func (s *Service) MetadataHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v2/credentials/{id}", s.serveCredentials)
	for _, version := range []string{"/v3/", "/v4/"} {
		mux.HandleFunc("GET "+version+"{id}", func(w http.ResponseWriter, r *http.Request) { s.serveMetadata(w, r, "") })
		mux.HandleFunc("GET "+version+"{id}/{what}", func(w http.ResponseWriter, r *http.Request) { s.serveMetadata(w, r, r.PathValue("what")) })
	}
	return mux
}

func (s *Service) serveCredentials(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	t := s.creds[r.PathValue("id")]
	var session iam.Session
	if t != nil {
		session = t.session
	}
	s.mu.Unlock()
	if t == nil {
		writeJSON(w, http.StatusBadRequest, doc{"code": "InvalidIdInRequest", "message": "CredentialsV2Request: Credentials not found", "HTTPErrorCode": http.StatusBadRequest})
		return
	}
	if s.now().Add(15 * time.Minute).After(session.Identity.Expires) {
		if err := s.renewSession(t); err != nil {
			writeJSON(w, http.StatusInternalServerError, doc{"code": "NoCredentialsAvailable", "message": err.Error()})
			return
		}
		s.mu.Lock()
		session = t.session
		s.mu.Unlock()
	}
	id := session.Identity
	writeJSON(w, http.StatusOK, doc{"RoleArn": id.RoleARN, "AccessKeyId": id.AccessKeyID, "SecretAccessKey": id.Secret, "Token": id.Token,
		"Expiration": id.Expires.UTC().Format(time.RFC3339)})
}

func (s *Service) serveMetadata(w http.ResponseWriter, r *http.Request, what string) {
	s.mu.Lock()
	ref := s.metadata[r.PathValue("id")]
	var out doc
	if ref != nil {
		switch what {
		case "":
			out = ref.container.metadata(ref.task)
		case "task":
			out = ref.task.metadata()
		case "taskWithTags":
			out = ref.task.metadata()
			out["TaskTags"] = copyTags(ref.task.tags)
		}
	}
	s.mu.Unlock()
	if out == nil {
		http.Error(w, "unable to get the metadata: no such container or document", http.StatusNotFound)
		return
	}
	writeJSON(w, http.StatusOK, out)
}

func (t *task) metadata() doc {
	cs := []doc{}
	for _, c := range t.containers {
		cs = append(cs, c.metadata(t))
	}
	d := doc{"Cluster": t.cluster.arn, "TaskARN": t.arn, "Family": t.def.Family, "Revision": strconv.Itoa(t.def.revision),
		"DesiredStatus": t.desired, "KnownStatus": t.last, "LaunchType": t.launchType, "AvailabilityZone": t.zone(), "Containers": cs,
		"PullStartedAt": rfc3339(t.pullStartedAt), "PullStoppedAt": rfc3339(t.pullStoppedAt)}
	if t.service != nil {
		d["ServiceName"] = t.service.name
	}
	limits := doc{}
	if cpu, err := strconv.ParseFloat(t.def.CPU, 64); err == nil {
		limits["CPU"] = cpu / 1024
	}
	if memory, err := strconv.Atoi(t.def.Memory); err == nil {
		limits["Memory"] = memory
	}
	d["Limits"] = limits
	return prune(d)
}

func (c *container) metadata(t *task) doc {
	d := doc{"DockerId": c.runtimeID, "Name": c.def.Name, "DockerName": c.def.Name, "Image": c.def.Image, "ImageID": "", "ContainerARN": c.arn,
		"DesiredStatus": t.desired, "KnownStatus": c.last, "Type": "NORMAL", "CreatedAt": rfc3339(c.createdAt), "StartedAt": rfc3339(c.startedAt),
		"Labels": doc{"com.amazonaws.ecs.cluster": t.cluster.arn, "com.amazonaws.ecs.container-name": c.def.Name,
			"com.amazonaws.ecs.task-arn": t.arn, "com.amazonaws.ecs.task-definition-family": t.def.Family,
			"com.amazonaws.ecs.task-definition-version": strconv.Itoa(t.def.revision)}}
	if c.def.HealthCheck != nil {
		d["Health"] = doc{"status": c.health}
	}
	if c.exitCode != nil {
		d["ExitCode"] = *c.exitCode
	}
	if t.eni != nil {
		d["Networks"] = []doc{{"NetworkMode": "awsvpc", "IPv4Addresses": []string{t.eni.addr}, "MACAddress": t.eni.mac, "PrivateDNSName": t.eni.dnsName,
			"IPv4SubnetCIDRBlock": t.eni.subnet.CIDR.String(), "DomainNameServers": []string{"10.0.0.2"},
			"SubnetGatewayIpv4Address": strings.Join([]string{"10.0.0.1", strconv.Itoa(t.eni.subnet.CIDR.Bits())}, "/")}}
	}
	return prune(d)
}

func rfc3339(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return t.UTC().Format(time.RFC3339Nano)
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		http.Error(w, "encode the answer", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(body) // the client is gone when this fails
}
