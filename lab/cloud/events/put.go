package events

import (
	"encoding/json"
	"strings"
	"time"

	"github.com/isthmus-mesh/isthmus/lab/cloud/awsserver"
)

// putEvents publishes events of a caller's own; sources that begin with aws. are AWS's.
func (s *Service) putEvents(_ *awsserver.Request, k busKey, in input) (any, error) {
	if len(in.Entries) == 0 || len(in.Entries) > maxEntries {
		return nil, invalid("1 validation error detected: Value at 'entries' failed to satisfy constraint: Member must have length between 1 and %d", maxEntries)
	}
	out, failed := []doc{}, 0
	refuse := func(code, message string) {
		failed++
		out = append(out, doc{"ErrorCode": code, "ErrorMessage": message})
	}
	for _, e := range in.Entries {
		var detail map[string]any
		switch {
		case e.Source == "":
			refuse("InvalidArgument", "Parameter Source is not valid. Reason: Source is a required argument.")
		case e.DetailType == "":
			refuse("InvalidArgument", "Parameter DetailType is not valid. Reason: DetailType is a required argument.")
		case strings.HasPrefix(e.Source, "aws."):
			refuse("NotAuthorizedForSourceException", "Not authorized for the source.")
		case len(e.Detail) > maxEntry:
			refuse("InvalidArgument", "Total size of the entry is larger than the maximum.")
		case e.EventBusName != "" && e.EventBusName != "default" && e.EventBusName != k.arn("event-bus", "default"):
			refuse("ResourceNotFoundException", "Event bus "+e.EventBusName+" does not exist.")
		case json.Unmarshal([]byte(e.Detail), &detail) != nil:
			refuse("MalformedDetail", "Detail is malformed.")
		default:
			event := Event{Source: e.Source, DetailType: e.DetailType, Resources: e.Resources, Detail: detail}
			if e.Time != nil {
				event.Time = time.UnixMilli(int64(*e.Time * 1000))
			}
			id, err := s.put(k, event)
			if err != nil {
				return nil, err
			}
			out = append(out, doc{"EventId": id})
		}
	}
	return doc{"FailedEntryCount": failed, "Entries": out}, nil
}

// testPattern tells whether a pattern matches an event.
func testPattern(_ *awsserver.Request, _ busKey, in input) (any, error) {
	p, err := parsePattern(in.EventPattern)
	if err != nil {
		return nil, awsserver.Errorf("InvalidEventPatternException", "Event pattern is not valid. Reason: %s", err)
	}
	var event map[string]any
	if json.Unmarshal([]byte(in.Event), &event) != nil {
		return nil, invalid("Parameter Event is not valid.")
	}
	return doc{"Result": p.matches(event)}, nil
}
