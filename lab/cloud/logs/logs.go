// Package logs is the lab's CloudWatch Logs: groups and streams in memory, written by ECS tasks with the awslogs
// driver and by clients, read by "aws logs tail" and its like. Old events make room for new ones.
package logs

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/isthmus-mesh/isthmus/lab/cloud/awsserver"
)

// Bounds. A stream keeps its newest events.
const (
	maxGroups         = 10000
	maxStreams        = 5000 // per group; the one written longest ago makes room
	maxEventsInStream = 5000
	maxMessage        = 256 << 10
)

// Config is what a Service needs.
type Config struct {
	Now func() time.Time // nil means time.Now
}

// Service is CloudWatch Logs. It is safe for concurrent use.
type Service struct {
	now func() time.Time

	mu     sync.Mutex
	groups map[groupKey]*group // guarded by mu
	serial uint64              // of events; guarded by mu
}

type groupKey struct{ account, region, name string }

type group struct {
	created   time.Time
	retention int
	streams   map[string]*stream
}

type stream struct {
	name      string
	created   time.Time
	lastWrite time.Time
	events    []event // in the order of arrival
}

type event struct {
	id       uint64
	at       time.Time
	ingested time.Time
	message  string
}

// New returns an empty Service.
func New(cfg Config) (*Service, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Service{now: cfg.Now, groups: map[groupKey]*group{}}, nil
}

var errNoGroup = &awsserver.Error{Code: "ResourceNotFoundException", Message: "The specified log group does not exist."} //nolint:gochecknoglobals // a constant error

// CreateStream makes a stream for a container. A stream that is there already is kept.
func (s *Service) CreateStream(account, region, groupName, streamName string, createGroup bool) error {
	if groupName == "" {
		return errors.New("the option awslogs-group is missing")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	k := groupKey{account, region, groupName}
	if s.groups[k] == nil {
		if !createGroup {
			return errNoGroup
		}
		s.groups[k] = &group{created: s.now(), streams: map[string]*stream{}}
	}
	if s.groups[k].streams[streamName] == nil {
		s.groups[k].add(&stream{name: streamName, created: s.now()})
	}
	return nil
}

// add puts a stream in; when the group is full the stream written longest ago goes.
func (g *group) add(st *stream) {
	if len(g.streams) >= maxStreams {
		var oldest *stream
		for _, other := range g.streams {
			if oldest == nil || other.lastWrite.Before(oldest.lastWrite) {
				oldest = other
			}
		}
		delete(g.streams, oldest.name)
	}
	g.streams[st.name] = st
}

// Put appends a message to a stream; it is dropped when the group or the stream has been deleted meanwhile.
func (s *Service) Put(account, region, groupName, streamName string, at time.Time, message string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.groups[groupKey{account, region, groupName}]
	if g == nil || g.streams[streamName] == nil {
		return
	}
	s.putLocked(g.streams[streamName], at, message)
}

func (s *Service) putLocked(st *stream, at time.Time, message string) {
	if len(message) > maxMessage {
		message = message[:maxMessage]
	}
	s.serial++
	st.lastWrite = s.now()
	st.events = append(st.events, event{id: s.serial, at: at, ingested: st.lastWrite, message: message})
	if over := len(st.events) - maxEventsInStream; over > 0 {
		st.events = slices.Delete(st.events, 0, over)
	}
}

func (k groupKey) arn() string {
	return "arn:aws:logs:" + k.region + ":" + k.account + ":log-group:" + k.name
}

func streamARN(k groupKey, name string) string { return k.arn() + ":log-stream:" + name }

// matcher returns the test of a filter pattern. The lab knows plain terms, all of which must occur, and quoted ones;
// JSON and column patterns are refused.
func matcher(pattern string) (func(string) bool, error) {
	pattern = strings.TrimSpace(pattern)
	if strings.HasPrefix(pattern, "{") || strings.HasPrefix(pattern, "[") || strings.Contains(pattern, "%") {
		return nil, awsserver.Errorf("InvalidParameterException", "Invalid filter pattern: the lab supports plain terms only.")
	}
	var terms []string
	for pattern != "" {
		var term string
		if strings.HasPrefix(pattern, `"`) {
			end := strings.Index(pattern[1:], `"`)
			if end < 0 {
				return nil, awsserver.Errorf("InvalidParameterException", "Invalid filter pattern: a quote is open.")
			}
			term, pattern = pattern[1:end+1], pattern[end+2:]
		} else {
			term, pattern, _ = strings.Cut(pattern, " ")
		}
		pattern = strings.TrimSpace(pattern)
		if term != "" {
			terms = append(terms, term)
		}
	}
	return func(msg string) bool {
		for _, t := range terms {
			if want, no := strings.CutPrefix(t, "-"); no == strings.Contains(msg, want) {
				return false
			}
		}
		return true
	}, nil
}
