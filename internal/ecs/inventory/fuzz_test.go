package inventory

import "testing"

func FuzzParseARN(f *testing.F) {
	f.Add("arn:aws:ecs:us-east-2:123456789012:task/demo/0123")
	f.Add("arn:aws:iam::123456789012:role/a/b")
	f.Add("::::::")
	f.Fuzz(func(t *testing.T, s string) {
		a, err := ParseARN(s)
		if err == nil && a.String() != s {
			t.Errorf("ParseARN(%q).String() = %q", s, a.String())
		}
		if SameRole(s, s) && err != nil {
			t.Errorf("SameRole accepts %q, which is no ARN", s)
		}
		_ = ClusterOf(s)
		_ = TaskARN(s, "x")
	})
}
