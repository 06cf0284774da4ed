package awsapi

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Container instances lead to EC2 instances, and those to addresses; one that is not on EC2 has none.
func TestHostAddresses(t *testing.T) {
	e := newEndpoint(t)
	e.answer("DescribeContainerInstances", http.StatusOK, `{"containerInstances":[
		{"containerInstanceArn":"ci-1","ec2InstanceId":"i-1"},{"containerInstanceArn":"ci-2","ec2InstanceId":"i-2"},{"containerInstanceArn":"ci-3"}]}`)
	e.mu.Lock()
	e.answers["DescribeInstances"] = append(e.answers["DescribeInstances"], func(w http.ResponseWriter) {
		fmt.Fprint(w, `<DescribeInstancesResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"><reservationSet>
			<item><instancesSet><item><instanceId>i-1</instanceId><privateIpAddress>10.0.1.7</privateIpAddress></item></instancesSet></item>
			<item><instancesSet><item><instanceId>i-2</instanceId></item></instancesSet></item></reservationSet></DescribeInstancesResponse>`)
	})
	e.mu.Unlock()
	h, err := NewHosts(open(t, Config{Endpoint: e.URL}), Target{})
	if err != nil {
		t.Fatal(err)
	}
	got, err := h.HostAddresses(t.Context(), "c", []string{"ci-1", "ci-2", "ci-3"})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"ci-1": "10.0.1.7"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
