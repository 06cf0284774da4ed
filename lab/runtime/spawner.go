package runtime

import (
	"runtime"
	"sync"
)

// spawner runs functions one after the other on one operating system thread that lives as long as the spawner. The
// inits of the containers are started on it, because a child that asked to die with its parent dies with the parent's
// thread, and Go ends threads when it likes.
type spawner struct {
	work chan func()
	wg   sync.WaitGroup
}

func newSpawner() *spawner {
	s := &spawner{work: make(chan func())}
	s.wg.Go(func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		for f := range s.work {
			f()
		}
	})
	return s
}

// do runs f on the thread and waits for it.
func (s *spawner) do(f func()) {
	done := make(chan struct{})
	s.work <- func() {
		defer close(done)
		f()
	}
	<-done
}

// close ends the goroutine. do must not be called any more.
func (s *spawner) close() {
	close(s.work)
	s.wg.Wait()
}
