package ecs

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"slices"
	"strings"

	"github.com/isthmus-mesh/isthmus/lab/cloud/awsserver"
)

// Names of ECS's errors.
const (
	errClient          = "ClientException"
	errInvalid         = "InvalidParameterException"
	errClusterNotFound = "ClusterNotFoundException"
)

func invalid(format string, args ...any) error { return awsserver.Errorf(errInvalid, format, args...) }

// decodeDoc reads the whole request with its unknown members; numbers keep their text.
func decodeDoc(r *awsserver.Request) (doc, error) {
	dec := json.NewDecoder(bytes.NewReader(r.Body))
	dec.UseNumber()
	d := doc{}
	if err := dec.Decode(&d); err != nil {
		return nil, awsserver.Errorf("SerializationException", "%s", err)
	}
	return d, nil
}

// without returns a copy of a document lacking some members.
func without(d doc, names ...string) doc {
	out := make(doc, len(d))
	for k, v := range d {
		if !slices.Contains(names, k) {
			out[k] = v
		}
	}
	return out
}

// tagMap checks and collects tags.
func tagMap(list []tag) (map[string]string, error) {
	if len(list) > 50 {
		return nil, invalid("Too many tags: the maximum is 50.")
	}
	m := make(map[string]string, len(list))
	for _, t := range list {
		if t.Key == "" || len(t.Key) > 128 || len(t.Value) > 256 {
			return nil, invalid("Invalid tag: keys have 1 to 128 characters, values up to 256.")
		}
		if strings.HasPrefix(strings.ToLower(t.Key), "aws:") {
			return nil, invalid("Invalid tag key %s: keys beginning with aws: are reserved.", t.Key)
		}
		if _, twice := m[t.Key]; twice {
			return nil, invalid("Duplicate tag keys found. Please note that Tag keys are case insensitive.")
		}
		m[t.Key] = t.Value
	}
	return m, nil
}

// resourceTags are the condition keys that tags of a resource give.
func resourceTags(m map[string]string, more map[string][]string) map[string][]string {
	out := make(map[string][]string, 2*len(m)+len(more))
	for k, v := range m {
		out["aws:ResourceTag/"+k] = []string{v}
		out["ecs:ResourceTag/"+k] = []string{v}
	}
	for k, v := range more {
		out[k] = v
	}
	return out
}

// page cuts a list of ARNs that is already in the order of the answer. The position of the token is found again by
// before, which orders two items, so that items that came or went in between do not disturb.
func page(r *awsserver.Request, items []string, token string, limit, maximum int, before func(a, b string) int) (out []string, next string, err error) {
	switch {
	case limit == 0:
		limit = min(maximum, defaultPage(r.Operation, maximum))
	case limit < 1 || limit > maximum:
		return nil, "", invalid("Max results must be between 1 and %d.", maximum)
	}
	if token != "" {
		after, ok := r.ReadPageToken(token)
		if !ok {
			return nil, "", invalid("Invalid token %s", token)
		}
		i := slices.IndexFunc(items, func(s string) bool { return before(after, s) < 0 })
		if i < 0 {
			return []string{}, "", nil
		}
		items = items[i:]
	}
	if len(items) <= limit {
		return append([]string{}, items...), "", nil
	}
	return items[:limit], r.PageToken(items[limit-1]), nil
}

// defaultPage is the page size when none is asked for; ListServices has its own.
func defaultPage(op string, maximum int) int {
	if op == "ListServices" {
		return 10
	}
	return maximum
}

// last returns what follows the last slash: the name in an ARN or the name itself.
func last(s string) string { return s[strings.LastIndex(s, "/")+1:] }

// hexID returns n random bytes in hexadecimal.
func hexID(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails, see crypto/rand
	return hex.EncodeToString(b)
}
