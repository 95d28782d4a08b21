{{- define "comfy-worker.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* 46 characters: KEDA and the ReplicaSet add theirs, and a pod's name is also the worker's id. */}}
{{- define "comfy-worker.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 46 | trimSuffix "-" }}
{{- else if contains (include "comfy-worker.name" .) .Release.Name }}
{{- .Release.Name | trunc 46 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "comfy-worker.name" .) | trunc 46 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "comfy-worker.selectorLabels" -}}
app.kubernetes.io/name: {{ include "comfy-worker.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "comfy-worker.labels" -}}
{{ include "comfy-worker.selectorLabels" . }}
app.kubernetes.io/component: worker
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "comfy-worker.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "comfy-worker.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "comfy-worker.image" -}}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) }}
{{- end }}
{{- end }}

{{- define "comfy-worker.queue" -}}
{{- dig "amqp" "queue" "comfy.jobs" .Values.config }}
{{- end }}

{{- define "comfy-worker.modelsClaim" -}}
{{- if eq .Values.models.type "newClaim" }}
{{- printf "%s-models" (include "comfy-worker.fullname" .) }}
{{- else if eq .Values.models.type "existingClaim" }}
{{- .Values.models.existingClaim }}
{{- end }}
{{- end }}

{{/* A value of a setting as its variable holds it. YAML's numbers arrive as floats: 16777216 must not become 1.6777216e+07. */}}
{{- define "comfy-worker.settingValue" -}}
{{- if kindIs "slice" . }}
{{- $items := list }}
{{- range . }}
{{- $items = append $items (toString . | replace "\\" "\\\\" | replace "," "\\,") }}
{{- end }}
{{- join "," $items }}
{{- else if kindIs "map" . }}
{{- $items := list }}
{{- range $name, $value := . }}
{{- $text := include "comfy-worker.settingValue" $value }}
{{- $items = append $items (printf "%s=%s" $name ($text | replace "\\" "\\\\" | replace "," "\\,")) }}
{{- end }}
{{- join "," $items }}
{{- else if and (kindIs "float64" .) (eq (floor .) .) }}
{{- printf "%d" (int64 .) }}
{{- else }}
{{- toString . }}
{{- end }}
{{- end }}

{{/* The variables of the ConfigMap: the user's settings, and those that the chart itself keeps in step. */}}
{{- define "comfy-worker.variables" -}}
{{- $variables := dict }}
{{- range $section, $entries := .Values.config }}
{{- range $key, $value := $entries }}
{{- $_ := set $variables (printf "COMFY_WORKER_%s_%s" $section $key | upper) (include "comfy-worker.settingValue" $value) }}
{{- end }}
{{- end }}
{{- $_ := set $variables "COMFY_WORKER_COMFYUI_PATH" .Values.comfyui.path }}
{{- $_ := set $variables "COMFY_WORKER_COMFYUI_WORKDIR" .Values.comfyui.path }}
{{- $_ := set $variables "COMFY_WORKER_WORKER_STATE_DIR" .Values.state.path }}
{{- $_ := set $variables "COMFY_WORKER_WORKER_GRACE" (printf "%ds" (int .Values.grace.seconds)) }}
{{- $_ := set $variables "COMFY_WORKER_ADMIN_LISTEN" (printf "0.0.0.0:%d" (int .Values.admin.port)) }}
{{- if eq .Values.mode "job" }}
{{- $_ := set $variables "COMFY_WORKER_WORKER_MAX_JOBS" "1" }}
{{- $_ := set $variables "COMFY_WORKER_WORKER_IDLE_EXIT" .Values.job.idleExit }}
{{- end }}
{{- range $name, $value := $variables }}
{{- printf "%s: %s\n" $name ($value | quote) }}
{{- end }}
{{- end }}
