package ec2

import "github.com/isthmus-mesh/isthmus/lab/cloud/awsserver"

// describeInstances lists none: the lab's tasks need no instances. One asked for by its id is not found.
func (s *Service) describeInstances(r *awsserver.Request) (any, error) {
	if ids := r.Form.Strings("InstanceId"); len(ids) > 0 {
		return nil, awsserver.Errorf("InvalidInstanceID.NotFound", "The instance ID '%s' does not exist", ids[0])
	}
	return struct {
		Reservations struct{} `xml:"reservationSet"`
	}{}, nil
}
