{{- define "comfy-worker.trigger" -}}
- type: rabbitmq
  metadata:
    protocol: {{ .Values.autoscaling.protocol }}
    mode: QueueLength
    queueName: {{ include "comfy-worker.queue" . | quote }}
    vhostName: {{ .Values.broker.vhost | quote }}
    value: {{ ternary (toString (int .Values.autoscaling.jobsPerWorker)) "1" (eq .Values.mode "deployment") | quote }}
    {{- if eq .Values.mode "deployment" }}
    activationValue: {{ toString (int .Values.autoscaling.activationJobs) | quote }}
    {{- end }}
    {{- if eq .Values.autoscaling.protocol "http" }}
    excludeUnacknowledged: {{ not .Values.autoscaling.countUnacknowledged | toString | quote }}
    {{- end }}
    {{- range $name, $value := .Values.autoscaling.extraMetadata }}
    {{ $name }}: {{ $value | toString | quote }}
    {{- end }}
  authenticationRef:
    {{- if .Values.autoscaling.triggerAuthentication.create }}
    name: {{ include "comfy-worker.fullname" . }}
    {{- else }}
    name: {{ .Values.autoscaling.triggerAuthentication.name }}
    kind: {{ .Values.autoscaling.triggerAuthentication.kind }}
    {{- end }}
{{- end }}
