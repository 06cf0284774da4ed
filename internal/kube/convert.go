package kube

import (
	"encoding/json"
	"fmt"
)

// Encode turns a value that marshals to a Kubernetes object's JSON into an Object. A uid or resourceVersion in it is
// dropped: those are facts about what exists, not wishes.
func Encode(v any) (*Object, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode object: %w", err)
	}
	var fields map[string]any
	if err := json.Unmarshal(b, &fields); err != nil {
		return nil, fmt.Errorf("encode object: %w", err)
	}
	o := &Object{Object: fields}
	if o.GetKind() == "" || o.GetName() == "" {
		return nil, fmt.Errorf("encode object: kind and metadata.name are required, got %q and %q", o.GetKind(), o.GetName())
	}
	o.SetUID("")
	o.SetResourceVersion("")
	return o, nil
}

// Decode reads an object into a value with JSON tags; fields that the value lacks are left out.
func Decode(o *Object, into any) error {
	b, err := json.Marshal(o.Object)
	if err != nil {
		return fmt.Errorf("decode %s: %w", Ref(o), err)
	}
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("decode %s: %w", Ref(o), err)
	}
	return nil
}
