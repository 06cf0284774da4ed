package eks

import (
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/lab/cloud/iam"
)

// podSessionLife is how long credentials of a pod are valid; the agent of EKS gives six hours too.
const podSessionLife = 6 * time.Hour

// Agent answers pods at 169.254.170.23: the service account's token in, credentials of the associated role out. The
// sessions carry EKS's tags, which are transitive, so a role that such a pod assumes must allow sts:TagSession.
func (s *Service) Agent() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/credentials", s.serveCredentials)
	return mux
}

func (s *Service) serveCredentials(w http.ResponseWriter, r *http.Request) {
	token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	s.mu.Lock()
	review := s.review
	s.mu.Unlock()
	if token == "" {
		http.Error(w, "Service account token cannot be empty", http.StatusBadRequest)
		return
	}
	if review == nil {
		http.Error(w, "the lab's Kubernetes is not up: tokens cannot be checked yet", http.StatusServiceUnavailable)
		return
	}
	who, err := review(r.Context(), token)
	if err != nil {
		http.Error(w, "AccessDeniedException: Unauthorized Exception! EKS does not have permissions to assume the associated role: "+err.Error(), http.StatusForbidden)
		return
	}
	a := s.find(who.Namespace, who.ServiceAccount)
	if a == nil {
		http.Error(w, "ResourceNotFoundException: no pod identity association for service account "+who.Namespace+"/"+who.ServiceAccount, http.StatusNotFound)
		return
	}
	name := s.cfg.Cluster().Name
	tags := map[string]string{"eks-cluster-arn": s.clusterARN(name), "eks-cluster-name": name, "kubernetes-namespace": who.Namespace,
		"kubernetes-service-account": who.ServiceAccount, "kubernetes-pod-name": who.PodName, "kubernetes-pod-uid": who.PodUID}
	if a.noSessionTags {
		tags = nil
	}
	session, err := s.cfg.Roles.AssumeForService(iam.ServiceSession{RoleARN: a.roleARN, Service: "pods.eks.amazonaws.com",
		SessionName: sessionName(name, who), SourceARN: s.clusterARN(name), Duration: podSessionLife, Tags: tags})
	if err != nil {
		http.Error(w, "AccessDeniedException: Unauthorized Exception! EKS does not have permissions to assume the associated role: "+err.Error(), http.StatusForbidden)
		return
	}
	id := session.Identity
	body, err := json.Marshal(map[string]string{"AccessKeyId": id.AccessKeyID, "SecretAccessKey": id.Secret, "Token": id.Token,
		"AccountId": id.AccountID, "Expiration": id.Expires.UTC().Format(time.RFC3339)})
	if err != nil {
		http.Error(w, "encode the credentials", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(body) // the pod is gone when this fails
}

// sessionName is eks-CLUSTER-POD-..., cut to the length a session name may have.
func sessionName(cluster string, who Subject) string {
	name := "eks-" + cluster + "-" + who.PodName
	if who.PodName == "" {
		name = "eks-" + cluster + "-" + who.ServiceAccount
	}
	if len(name) > 64 {
		name = name[:64]
	}
	return name
}
