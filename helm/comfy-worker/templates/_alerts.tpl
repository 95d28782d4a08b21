{{/*
The alerts as a YAML list. Counters of pods that live for one job are gone before Prometheus has seen them twice:
mode job has only the alerts that do without.
RabbitMQ's numbers by queue come from /metrics/per-object (rabbitmq_queue_…) or /metrics/detailed (rabbitmq_detailed_queue_…).
*/}}
{{- define "comfy-worker.alerts" -}}
{{- $limits := .Values.prometheusRule.thresholds }}
{{- $name := include "comfy-worker.fullname" . }}
{{- $job := printf "job=\"%s/%s\"" .Release.Namespace $name }}
{{- $own := default $job .Values.prometheusRule.selector }}
{{- $pods := printf "namespace=\"%s\",pod=~\"%s-.+\"" .Release.Namespace $name }}
{{- $queue := include "comfy-worker.queue" . }}
{{- $depth := "{__name__=~\"rabbitmq(_detailed)?_queue_messages_ready\",queue=\"%s\"}" }}
{{- $waiting := printf $depth $queue }}
{{- $dead := printf $depth (printf "%s.dead" $queue) }}
{{- $instance := "{{ $labels.instance }}" }}
{{- $pod := "{{ $labels.pod }}" }}
{{- $value := "{{ $value | humanize }}" }}
{{- $share := "{{ $value | humanizePercentage }}" }}
- alert: ComfyWorkerNoneReady
  expr: |-
    max({{ $waiting }}) > 0
    and on () (sum(comfy_worker_ready{ {{- $own -}} }) or vector(0)) == 0
  for: {{ $limits.noReadyWorkerMinutes }}m
  labels: {severity: critical}
  annotations:
    summary: 'Jobs wait in {{ $queue }} and no worker is ready.'
    description: '{{ $value }} jobs wait, and for {{ $limits.noReadyWorkerMinutes }} minutes no worker has been ready to take one.'
    runbook: >-
      Look at the pods and their events (no free GPU, an image that cannot be pulled), at KEDA's view (kubectl describe
      scaledobject or scaledjob), and at the log of a pod that boots; `comfy-worker check` in a pod names the part that fails.
- alert: ComfyWorkerDeadLetters
  expr: |-
    max({{ $dead }}) - (max({{ $dead }} offset 30m) or vector(0)) > 0
  labels: {severity: warning}
  annotations:
    summary: 'The dead letters of {{ $queue }} grow.'
    description: '{{ $value }} more than half an hour ago.'
    runbook: >-
      `comfy-worker dead list` says why each job is there; after the cause is fixed, `comfy-worker dead retry` puts it back.
- alert: ComfyWorkerDrainOverdue
  expr: |-
    kube_pod_deletion_timestamp{ {{- $pods -}} } - {{ .Values.grace.marginSeconds }} < time()
  labels: {severity: warning}
  annotations:
    summary: 'The drain of {{ $pod }} exceeds its grace.'
    description: 'It was told to stop more than {{ .Values.grace.seconds }} s ago and is killed {{ .Values.grace.marginSeconds }} s after that.'
    runbook: >-
      Its job is handed back and runs again elsewhere, so nothing is lost but time. Raise grace.seconds above your longest job,
      or use mode job; a drain that hangs with no job in hand is a fault: keep the pod's log.
- alert: ComfyWorkerEvicted
  expr: |-
    sum by (pod) (kube_pod_status_reason{ {{- $pods -}} ,reason="Evicted"}) > 0
  labels: {severity: warning}
  annotations:
    summary: '{{ $pod }} was evicted.'
    description: 'The node was short of disk or memory, or the pod was above scratch.sizeLimit or models.size.'
    runbook: >-
      `kubectl describe pod` names the resource. Raise scratch.sizeLimit for large outputs, set inputs.model_cache_bytes
      below models.size, and request the memory that ComfyUI really uses.
{{- if or (eq .Values.models.type "newClaim") (eq .Values.models.type "existingClaim") (eq .Values.state.type "existingClaim") }}
{{- $claims := list (include "comfy-worker.modelsClaim" .) }}
{{- if eq .Values.state.type "existingClaim" }}
{{- $claims = append $claims .Values.state.existingClaim }}
{{- end }}
{{- $claims = printf "namespace=\"%s\",persistentvolumeclaim=~\"%s\"" .Release.Namespace (join "|" (compact $claims)) }}
- alert: ComfyWorkerDiskLow
  expr: |-
    min by (persistentvolumeclaim) (
      kubelet_volume_stats_available_bytes{ {{- $claims -}} }
      / kubelet_volume_stats_capacity_bytes{ {{- $claims -}} }
    ) < {{ $limits.diskFreeRatio }}
  for: 10m
  labels: {severity: warning}
  annotations:
    summary: 'The volume {{ "{{ $labels.persistentvolumeclaim }}" }} is nearly full.'
    description: '{{ $share }} is free.'
    runbook: >-
      Set inputs.model_cache_bytes below the volume's size, so that the worker removes what has not been used for longest,
      or make the volume larger. On a full disk jobs are handed back.
{{- end }}
{{- if eq .Values.mode "job" }}
- alert: ComfyWorkerPodsFail
  expr: |-
    sum(kube_job_status_failed{namespace="{{ .Release.Namespace }}",job_name=~"{{ $name }}-.+"}) > 3
  for: 10m
  labels: {severity: warning}
  annotations:
    summary: 'The Jobs of {{ $name }} fail.'
    description: '{{ $value }} pods of Jobs that still exist have failed.'
    runbook: >-
      The exit code says whose fault it is: 2 the configuration, 3 ComfyUI, browser, broker or store, 101 or 134 a crash,
      137 memory or a drain beyond its grace; `kubectl logs` has the reason.
{{- else }}
{{ include "comfy-worker.workerAlerts" (dict "limits" $limits "own" $own "pods" $pods "waiting" $waiting "instance" $instance "pod" $pod "value" $value "share" $share) }}
{{- end }}
{{- end }}

{{- define "comfy-worker.workerAlerts" -}}
- alert: ComfyWorkerStuckUnready
  expr: |-
    comfy_worker_ready{ {{- .own -}} } == 0
  for: 45m
  labels: {severity: warning}
  annotations:
    summary: '{{ .instance }} has not been ready for 45 minutes.'
    description: 'It boots again and again, waits for broker or store, or cannot get its ComfyUI back.'
    runbook: >-
      /status of the pod names its phase and the unhealthy part; `comfy-worker check` in the pod says how to fix it.
- alert: ComfyWorkerPodRestarts
  expr: |-
    increase(kube_pod_container_status_restarts_total{ {{- .pods -}} ,container="worker"}[30m]) > 2
  labels: {severity: warning}
  annotations:
    summary: '{{ .pod }} restarts again and again.'
    description: '{{ .value }} restarts in 30 minutes.'
    runbook: >-
      The exit code says whose fault it is: 0 a limit of jobs or memory was reached, 2 the configuration, 3 ComfyUI, browser,
      broker or store, 101 or 134 a crash, 137 memory; `kubectl logs --previous` has the reason.
- alert: ComfyWorkerJobsFail
  expr: |-
    sum(rate(comfy_worker_jobs_total{ {{- .own -}} ,status="failed",code=~"engine_crashed|internal|poison"}[15m]))
    / sum(rate(comfy_worker_jobs_total{ {{- .own -}} }[15m])) > {{ .limits.failureRatio }}
  for: 10m
  labels: {severity: critical}
  annotations:
    summary: 'Jobs fail through the worker, not through themselves.'
    description: '{{ .share }} of the jobs end with engine_crashed, internal or poison.'
    runbook: >-
      The dashboard shows which code and which worker. engine_crashed: ComfyUI's last lines are in the log; poison: one job
      kills its workers, `result.json` names it; internal: the log has the cause.
- alert: ComfyWorkerOutOfMemory
  expr: |-
    sum(increase(comfy_worker_jobs_total{ {{- .own -}} ,code="out_of_memory"}[30m])) > 2
  labels: {severity: warning}
  annotations:
    summary: 'Jobs run out of GPU memory.'
    description: '{{ .value }} jobs in 30 minutes, each tried twice.'
    runbook: >-
      The workflows need a larger GPU or fewer pixels; if only some workers are hit, another program uses their GPU, or ComfyUI
      leaks: comfyui.max_jobs starts it again now and then.
- alert: ComfyWorkerChildRestarts
  expr: |-
    sum by (instance, child) (increase(comfy_worker_child_restarts_total{ {{- .own -}} }[30m])) > {{ .limits.childRestarts }}
  labels: {severity: warning}
  annotations:
    summary: '{{ "{{ $labels.child }}" }} of {{ .instance }} restarts again and again.'
    description: '{{ .value }} restarts in 30 minutes.'
    runbook: >-
      The log has ComfyUI's or Chromium's last lines and the cause; one worker alone points to its GPU (nvidia-smi, Xid errors in
      the node's log), all of them to a custom node or a workflow.
- alert: ComfyWorkerEngineIdle
  expr: |-
    max({{ .waiting }}) > {{ .limits.longQueue }}
    and on () (sum(rate(comfy_worker_engine_busy_seconds_total{ {{- .own -}} }[10m])) or vector(0)) / sum(comfy_worker_ready{ {{- .own -}} } == 1) < {{ .limits.busyRatio }}
  for: 15m
  labels: {severity: warning}
  annotations:
    summary: 'Engines are idle while the queue is long.'
    description: '{{ .value }} jobs wait, and the engines are busy for less than {{ .limits.busyRatio }} of the time.'
    runbook: >-
      The stage times on the dashboard say where jobs spend it: staging (slow store, cold models), conversion, upload. For short jobs
      amqp.lookahead=1 keeps the next one ready.
- alert: ComfyWorkerGaps
  expr: |-
    histogram_quantile(0.95, sum by (le) (rate(comfy_worker_engine_gap_seconds_bucket{ {{- .own -}} }[15m]))) > {{ .limits.gapSeconds }}
  for: 15m
  labels: {severity: info}
  annotations:
    summary: 'Engines wait between two jobs.'
    description: 'The 95th percentile of the gap between two executions is {{ .value }} s while the next job was there.'
    runbook: >-
      The next job's inputs or models arrive too late: look at staging times and model cache misses; a model volume near the GPU or
      amqp.lookahead=1 helps.
- alert: ComfyWorkerQueueWait
  expr: |-
    histogram_quantile(0.95, sum by (le) (rate(comfy_worker_queue_wait_seconds_bucket{ {{- .own -}} }[15m]))) > {{ .limits.queueWaitSeconds }}
  for: 15m
  labels: {severity: warning}
  annotations:
    summary: 'Jobs wait long in the queue.'
    description: 'The 95th percentile is {{ .value }} s.'
    runbook: >-
      If all workers are ready and busy, raise autoscaling.maxReplicas or add GPUs; if not, see the alerts of ready workers and idle engines.
- alert: ComfyWorkerBrokerReconnects
  expr: |-
    sum by (instance) (increase(comfy_worker_broker_reconnects_total{ {{- .own -}} }[15m])) > {{ .limits.brokerReconnects }}
  labels: {severity: warning}
  annotations:
    summary: '{{ .instance }} loses its broker again and again.'
    description: '{{ .value }} reconnects in 15 minutes; each costs a second delivery.'
    runbook: >-
      One worker: its node's network. All: the broker (memory or disk alarm, a restart), a proxy that closes idle connections,
      or a consumer timeout shorter than the jobs, which `comfy-worker check` looks for.
- alert: ComfyWorkerRedeliveries
  expr: |-
    sum(rate(comfy_worker_redeliveries_total{ {{- .own -}} }[30m])) / sum(rate(comfy_worker_jobs_total{ {{- .own -}} }[30m])) > {{ .limits.redeliveryRatio }}
  for: 15m
  labels: {severity: warning}
  annotations:
    summary: 'Many jobs are delivered more than once.'
    description: '{{ .value }} redeliveries a job.'
    runbook: >-
      Workers end before their jobs do: scaled away (grace.seconds, autoscaling.jobsPerWorker=1), evicted or reclaimed nodes, killed for
      memory, or hand back what they cannot do; the log says `handing the job back to the queue` with the reason.
- alert: ComfyWorkerHandBacks
  expr: |-
    sum by (instance) (increase(comfy_worker_hand_backs_total{ {{- .own -}} ,fault=~"broker|disk|engine|local|store"}[30m])) > {{ .limits.handBacks }}
  labels: {severity: warning}
  annotations:
    summary: '{{ .instance }} gives jobs back.'
    description: '{{ .value }} jobs in 30 minutes that it could not run, drains not counted.'
    runbook: >-
      The log says `giving the job back until later` with the reason: the local disk, a ComfyUI that does not come back, records
      that the store does not take.
- alert: ComfyWorkerDiskFull
  expr: |-
    max_over_time((1 - comfy_worker_dependency_up{ {{- .own -}} ,dependency="disk"})[15m:]) > 0
  labels: {severity: critical}
  annotations:
    summary: '{{ .instance }} has a full disk.'
    description: 'In the last 15 minutes nothing could be written.'
    runbook: >-
      Raise scratch.sizeLimit or the size of the model volume, set inputs.model_cache_bytes below the latter, and look at what else
      fills the node's disk; until then the worker is not ready.
- alert: ComfyWorkerStoreAway
  expr: |-
    comfy_worker_dependency_up{ {{- .own -}} ,dependency="store"} == 0
  for: 2m
  labels: {severity: critical}
  annotations:
    summary: '{{ .instance }} cannot reach the store.'
    description: 'No job is taken, and finished jobs wait with their outputs.'
    runbook: >-
      `/readyz` gives the reason in words: the address, the credentials, or the store itself. Nothing is lost: jobs go on when it is
      back.
- alert: ComfyWorkerMemory
  expr: |-
    sum by (pod) (comfy_worker_resident_memory_bytes{ {{- .own -}} })
    / on (pod) max by (pod) (kube_pod_container_resource_limits{ {{- .pods -}} ,container="worker",resource="memory"}) > {{ .limits.memoryRatio }}
  for: 5m
  labels: {severity: warning}
  annotations:
    summary: '{{ .pod }} is close to its memory limit.'
    description: '{{ .share }} of the limit is used.'
    runbook: >-
      Set comfyui.max_rss and worker.max_rss below resources.limits.memory, so that ComfyUI or the worker is started again between two
      jobs instead of killed within one, or raise the limit.
{{- end }}
